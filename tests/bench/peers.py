"""Run one benchmark row in what one would use in place of the original, in its interpreter:

    ORACLE_PYTHON tests/bench/peers.py ROW --peer PEER

The outputs of a forward must be within 1e-4 of the original's, relative to the largest.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import original
import rows
import run_export
import torch
from detr.util import misc

THREADS = int(os.environ["OMP_NUM_THREADS"])


class Arrays(torch.nn.Module):
    """The original with plain tensors: images [B, 3, H, W] and mask [B, H, W], True on padding, to
    logits [B, Q, C + 1] and boxes [B, Q, 4].
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, mask):
        outputs = self.model(misc.NestedTensor(images, mask))
        return outputs["pred_logits"], outputs["pred_boxes"]


def export(model, inputs, path):
    """Write the model as an ONNX file for the sizes of the inputs."""
    names = {"input_names": ["images", "mask"], "output_names": ["logits", "boxes"]}
    torch.onnx.export(Arrays(model), inputs, path, dynamo=False, opset_version=17, **names)


def load(peer, model, inputs):
    """Return a function of images and mask that returns logits and boxes, and its inputs."""
    if peer == "compile":
        return torch.compile(Arrays(model)), inputs
    if peer == "channels_last":
        images, mask = inputs
        model = Arrays(model.to(memory_format=torch.channels_last))
        return model, (images.contiguous(memory_format=torch.channels_last), mask)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export(model, inputs, path)
        run = run_export.RUNTIMES[peer](path, THREADS)

    def run_arrays(images, mask):
        outputs = run({"images": images.numpy(), "mask": mask.numpy()})
        return outputs["logits"], outputs["boxes"]

    return run_arrays, inputs


def forward(options):
    model, _, postprocessors = original.build(options.row)
    model.eval()
    samples, sizes = original.make_samples(options.row)
    inputs = samples.tensors, samples.mask
    with torch.no_grad():
        expected = [value.numpy() for value in Arrays(model)(*inputs)]
        run, inputs = load(options.peer, model, inputs)
        for mine, theirs in zip(run(*inputs), expected, strict=True):
            error = np.abs(np.asarray(mine) - theirs).max() / np.abs(theirs).max()
            assert error <= 1e-4, f"{options.peer} differs from the original by {error:.1e}"

        def step():
            logits, boxes = (torch.as_tensor(value) for value in run(*inputs))
            postprocessors["bbox"]({"pred_logits": logits, "pred_boxes": boxes}, sizes)

        return rows.measure(step, options)


def train(options):
    model, criterion, _ = original.build(options.row)
    if options.peer == "compile":
        model = torch.compile(model)
    else:
        model = model.to(memory_format=torch.channels_last)
    return original.train_model(model, criterion, options)


if __name__ == "__main__":
    options = rows.parse()
    rows.report((forward if options.row == "forward" else train)(options))
