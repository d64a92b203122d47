"""One row of the benchmark under PyTorch. The original's interpreter runs this file; see
benchmark.py.
"""

import argparse
import json
import time

START = time.time()

import bench_rows  # noqa: E402
import recipe  # noqa: E402
import run_evaluate  # noqa: E402
import run_model  # noqa: E402
import torch  # noqa: E402
from detr.datasets import build_dataset, get_coco_api_from_dataset  # noqa: E402
from detr.datasets.coco_eval import CocoEvaluator  # noqa: E402
from detr.util import misc  # noqa: E402


def build(row):
    recipe.CASES[row] = bench_rows.MODELS[row][1]
    return run_model.build(row)


def forward(options):
    model, _, postprocessors = build(options.row)
    model.to(options.device).eval()
    images, _ = bench_rows.make_batch(bench_rows.MODELS[options.row][2])
    samples = misc.nested_tensor_from_tensor_list([torch.from_numpy(image) for image in images])
    sizes = torch.tensor([image.shape[1:] for image in images])

    @torch.no_grad()
    def step():
        outputs = model(samples.to(options.device))
        results = postprocessors["bbox"](outputs, sizes.to(options.device))
        results = [{name: value.cpu() for name, value in result.items()} for result in results]
        if "segm" in postprocessors:
            masks = postprocessors["segm"](results, outputs, sizes, sizes)[0]["masks"]
            [run_evaluate.encode(mask) for mask in masks]

    return bench_rows.measure(step, options)


def train(options):
    model, criterion, _ = build(options.row)
    return train_model(model, criterion, options)


def train_model(model, criterion, options):
    """Times training steps as the original's engine takes them, on one batch of the row."""
    model.to(options.device).train()
    criterion.to(options.device)
    samples, host_targets = run_model.to_torch(
        *bench_rows.make_batch(bench_rows.MODELS[options.row][2])
    )
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-6, weight_decay=1e-4
    )

    def step():
        targets = [
            {name: value.to(options.device) for name, value in target.items()}
            for target in host_targets
        ]
        losses = criterion(model(samples.to(options.device)), targets)
        loss = run_model.weighted_loss(criterion, losses)
        # The original logs every loss at every step.
        {name: value.item() for name, value in losses.items()}
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return bench_rows.measure(step, options)


@torch.no_grad()
def evaluate(options):
    """As `python main.py --eval` of the original: losses, detections and figures."""
    model, criterion, postprocessors = build("forward")
    model.load_state_dict(torch.load(options.weights, weights_only=True)["model"])
    model.eval()
    criterion.eval()
    dataset = build_dataset(
        "val", argparse.Namespace(dataset_file="coco", coco_path=options.coco_path, masks=False)
    )
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
    name = options.row.split("-")[1]
    dataset = build_dataset(
        name, argparse.Namespace(dataset_file="coco", coco_path=options.coco_path, masks=False)
    )
    torch.manual_seed(0)
    return bench_rows.measure_data(dataset)


def loader(options):
    """A pass of the training data, as the original's main.py makes it."""
    start = time.time()
    dataset = build_dataset(
        "train", argparse.Namespace(dataset_file="coco", coco_path=options.coco_path, masks=False)
    )
    torch.manual_seed(0)
    batches = torch.utils.data.BatchSampler(
        torch.utils.data.RandomSampler(dataset), 2, drop_last=True
    )
    return bench_rows.measure_loader(
        torch.utils.data.DataLoader(
            dataset, batch_sampler=batches, collate_fn=misc.collate_fn, num_workers=2
        ),
        start,
    )


if __name__ == "__main__":
    options = bench_rows.parse()
    if options.row == "eval":
        bench_rows.report(evaluate(options))
    elif options.row == "loader":
        print(json.dumps(loader(options)))
    elif options.row in bench_rows.DATA:
        bench_rows.report(data(options))
    else:
        bench_rows.report((forward if options.row.startswith("forward") else train)(options))
