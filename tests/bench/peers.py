"""What a user would run instead of the original as it is: one row of the benchmark under one peer.
The original's interpreter runs this file; see benchmark.py.

    ORACLE_PYTHON tests/oracle/bench_peers.py ROW --peer PEER

Outputs of a forward are compared with the original's: they differ by 1e-4 of the largest at most.
"""

import io
import os

import bench_original
import bench_rows
import numpy as np
import torch
from detr.util import misc

THREADS = int(os.environ["OMP_NUM_THREADS"])


class Arrays(torch.nn.Module):
    """The original with plain tensors in and out: images [B, 3, H, W] and mask [B, H, W], True in
    the padding, to logits [B, Q, C + 1] and boxes [B, Q, 4].
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, mask):
        outputs = self.model(misc.NestedTensor(images, mask))
        return outputs["pred_logits"], outputs["pred_boxes"]


def export(model, inputs):
    """The model as the bytes of an ONNX file, for these sizes."""
    file = io.BytesIO()
    torch.onnx.export(
        Arrays(model),
        inputs,
        file,
        input_names=["images", "mask"],
        output_names=["logits", "boxes"],
        dynamo=False,
        opset_version=17,
    )
    return file.getvalue()


def on_onnxruntime(model, inputs):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        export(model, inputs), options, providers=["CPUExecutionProvider"]
    )
    return lambda images, mask: session.run(None, {"images": images.numpy(), "mask": mask.numpy()})


def on_openvino(model, inputs):
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(io.BytesIO(export(model, inputs))),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": THREADS,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    return lambda images, mask: list(compiled([images.numpy(), mask.numpy()]).values())


def channels_last(model):
    return model.to(memory_format=torch.channels_last)


def forward(options):
    model, _, postprocessors = bench_original.build(options.row)
    model.eval()
    images, _ = bench_rows.make_batch(bench_rows.MODELS[options.row][2])
    samples = misc.nested_tensor_from_tensor_list([torch.from_numpy(image) for image in images])
    sizes = torch.tensor([image.shape[1:] for image in images])
    inputs = samples.tensors, samples.mask
    with torch.no_grad():
        expected = [value.numpy() for value in Arrays(model)(*inputs)]
        if options.peer == "onnxruntime":
            run = on_onnxruntime(model, inputs)
        elif options.peer == "openvino":
            run = on_openvino(model, inputs)
        elif options.peer == "compile":
            run = torch.compile(Arrays(model))
        else:
            run = Arrays(channels_last(model))
            inputs = inputs[0].contiguous(memory_format=torch.channels_last), inputs[1]
        for mine, theirs in zip(run(*inputs), expected, strict=True):
            error = np.abs(np.asarray(mine) - theirs).max() / np.abs(theirs).max()
            assert error <= 1e-4, f"{options.peer} differs from the original by {error:.1e}"

        def step():
            logits, boxes = (torch.as_tensor(value) for value in run(*inputs))
            postprocessors["bbox"]({"pred_logits": logits, "pred_boxes": boxes}, sizes)

        return bench_rows.measure(step, options)


def train(options):
    model, criterion, _ = bench_original.build(options.row)
    if options.peer == "compile":
        model = torch.compile(model)
    else:
        model = channels_last(model)
    return bench_original.train_model(model, criterion, options)


if __name__ == "__main__":
    options = bench_rows.parse()
    bench_rows.report((forward if options.row.startswith("forward") else train)(options))
