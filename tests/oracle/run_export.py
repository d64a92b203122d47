"""Run an exported model in ONNX Runtime and OpenVINO, and the original on the same weights.

    ORACLE_PYTHON tests/oracle/run_export.py CASE MODEL.onnx BATCHES.npz OUT.npz

CASE: of recipe.CASES. BATCHES.npz holds `NAME/images` [B, 3, H, W] and `NAME/mask` [B, H, W], True
on padding. OUT.npz gets logits, boxes and masks as `RUNTIME/NAME/…`, and the median seconds of some
runs as `RUNTIME/NAME/seconds`; RUNTIME is onnxruntime, openvino or original.
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


def load_in_onnxruntime(path, threads):
    """Return a function of a batch, {"images", "mask"}, that returns the outputs by name."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(None, batch)))


def load_in_openvino(path, threads):
    """Return a function as load_in_onnxruntime does."""
    core = openvino.Core()
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = core.compile_model(core.read_model(path), "CPU", config)
    return lambda batch: {
        output.any_name: value for output, value in compiled([*batch.values()]).items()
    }


RUNTIMES = {"onnxruntime": load_in_onnxruntime, "openvino": load_in_openvino}


def load_original(case):
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
    models = {name: load(path, os.cpu_count()) for name, load in RUNTIMES.items()}
    models["original"] = load_original(case)
    results = {}
    for runtime, run in models.items():
        for name in names:
            batch = {part: arrays[f"{name}/{part}"] for part in ("images", "mask")}
            seconds = []
            for _ in range(REPEATS):
                start = time.perf_counter()
                outputs = run(batch)
                seconds.append(time.perf_counter() - start)
            results[f"{runtime}/{name}/seconds"] = statistics.median(seconds[1:])
            results.update({f"{runtime}/{name}/{key}": np.array(v) for key, v in outputs.items()})
    np.savez(out, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
