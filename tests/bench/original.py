"""Run one benchmark row of the original, in its own interpreter (see __main__.py)."""

import time

START = time.time()

import rows  # noqa: E402, I001  makes the other scripts importable
import recipe  # noqa: E402
import run_evaluate  # noqa: E402
import run_model  # noqa: E402
import torch  # noqa: E402
from detr.datasets import get_coco_api_from_dataset  # noqa: E402
from detr.datasets.coco_eval import CocoEvaluator  # noqa: E402
from detr.util import misc  # noqa: E402


def build(row):
    recipe.CASES[row] = rows.MODELS[row].flags
    return run_model.build(row)


def make_samples(row):
    """Return the row's images as a NestedTensor, and their sizes [B, 2]."""
    images, _ = rows.make_batch(rows.MODELS[row].sizes)
    samples = misc.nested_tensor_from_tensor_list([torch.from_numpy(image) for image in images])
    return samples, torch.tensor([image.shape[1:] for image in images])


def forward(options):
    model, _, postprocessors = build(options.row)
    model.to(options.device).eval()
    samples, sizes = make_samples(options.row)

    @torch.no_grad()
    def step():
        outputs = model(samples.to(options.device))
        results = postprocessors["bbox"](outputs, sizes.to(options.device))
        results = [{name: value.cpu() for name, value in result.items()} for result in results]
        if "segm" in postprocessors:
            masks = postprocessors["segm"](results, outputs, sizes, sizes)[0]["masks"]
            [run_evaluate.encode(mask[0]) for mask in masks]

    return rows.measure(step, options)


def train(options):
    model, criterion, _ = build(options.row)
    return train_model(model, criterion, options)


def train_model(model, criterion, options):
    """Time training steps as the original's engine takes them, on the row's batch."""
    model.to(options.device).train()
    criterion.to(options.device)
    samples, host_targets = run_model.to_torch(*rows.make_batch(rows.MODELS[options.row].sizes))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-6, weight_decay=1e-4)

    def step():
        targets = [{k: v.to(options.device) for k, v in target.items()} for target in host_targets]
        losses = criterion(model(samples.to(options.device)), targets)
        loss = run_model.weighted_loss(criterion, losses)
        [value.item() for value in losses.values()]  # the original logs every loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return rows.measure(step, options)


@torch.no_grad()
def evaluate(options):
    """Do what `main.py --eval` of the original does: losses, detections and COCO figures."""
    model, criterion, postprocessors = build("forward")
    model.load_state_dict(torch.load(options.weights, weights_only=True)["model"])
    model.eval()
    criterion.eval()
    dataset = run_evaluate.build_coco("val", options.coco_path)
    loader = torch.utils.data.DataLoader(dataset, 2, collate_fn=misc.collate_fn, num_workers=2)
    evaluator = CocoEvaluator(get_coco_api_from_dataset(dataset), ["bbox"])
    logger, first = misc.MetricLogger(delimiter="  "), None
    for samples, targets in logger.log_every(loader, 10, "Test:"):
        outputs = model(samples)
        losses = {name: value.item() for name, value in criterion(outputs, targets).items()}
        logger.update(**losses)
        results = postprocessors["bbox"](outputs, torch.stack([t["orig_size"] for t in targets]))
        first = first or time.time() - START
        evaluator.update({t["image_id"].item(): result for t, result in zip(targets, results)})
    evaluator.synchronize_between_processes()
    evaluator.accumulate()
    evaluator.summarize()
    return {"seconds": time.time() - START, "start": first}


def data(options):
    torch.manual_seed(0)
    image_set = options.row.split("-")[1]
    return rows.measure_data(run_evaluate.build_coco(image_set, options.coco_path))


def loader(options):
    """Load an epoch of training data as the original's main.py does."""
    start = time.time()
    dataset = run_evaluate.build_coco("train", options.coco_path)
    torch.manual_seed(0)
    sampler = torch.utils.data.RandomSampler(dataset)
    batches = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=torch.utils.data.BatchSampler(sampler, 2, drop_last=True),
        collate_fn=misc.collate_fn,
        num_workers=2,
    )
    return rows.measure_loader(batches, start)


def main(options):
    if options.row in rows.DATA:
        return data(options)
    special = {"eval": evaluate, "loader": loader}
    return special.get(options.row, forward if "forward" in options.row else train)(options)


if __name__ == "__main__":
    rows.report(main(rows.parse()))
