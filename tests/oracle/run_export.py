"""Runs an exported model in ONNX Runtime and OpenVINO, and the original on the same weights. The
original's interpreter runs this file:

    ORACLE_PYTHON tests/oracle/run_export.py CASE MODEL.onnx BATCHES.npz OUT.npz

CASE: of recipe.CASES. BATCHES.npz holds `NAME/images` [B, 3, H, W] and `NAME/mask` [B, H, W], True
on padding. OUT.npz gets `RUNTIME/NAME/logits`, boxes and masks, and `RUNTIME/NAME/seconds`, the
median of some runs; RUNTIME is onnxruntime, openvino or original.
"""

import os
import statistics
import sys
import time

import numpy as np
import onnxruntime
import openvino
import run_model
import torch
from detr.util.misc import NestedTensor

REPEATS = 5


def on_onnxruntime(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(None, batch)))


def on_openvino(path):
    core = openvino.Core()
    precision = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(path), "CPU", precision)
    return lambda batch: {
        output.any_name: value for output, value in compiled([*batch.values()]).items()
    }


def on_original(case):
    model, _, _ = run_model.build(case)
    model.eval()

    @torch.no_grad()
    def run(batch):
        outputs = model(NestedTensor(*(torch.from_numpy(value) for value in batch.values())))
        names = [name for name in ("logits", "boxes", "masks") if f"pred_{name}" in outputs]
        return {name: outputs[f"pred_{name}"].numpy() for name in names}

    return run


def main(case, path, batches, out):
    with np.load(batches) as data:
        arrays = dict(data)
    names = sorted({name.rsplit("/", 1)[0] for name in arrays})
    found = {}
    runtimes = {
        "onnxruntime": on_onnxruntime(path),
        "openvino": on_openvino(path),
        "original": on_original(case),
    }
    for runtime, run in runtimes.items():
        for name in names:
            batch = {part: arrays[f"{name}/{part}"] for part in ("images", "mask")}
            seconds = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                outputs = run(batch)
                seconds.append(time.perf_counter() - start)
            found[f"{runtime}/{name}/seconds"] = statistics.median(seconds[1:])
            found.update({f"{runtime}/{name}/{key}": np.array(v) for key, v in outputs.items()})
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
