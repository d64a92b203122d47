"""Build float32 operators from C++ and CUDA source."""

import hashlib
import re
from pathlib import Path

from util.backend import jt


def _include(name):
    """Return an #include line for a header in this folder, with its digest as a comment.

    A new digest makes Jittor recompile the operators that include the header. An include, not the
    source, because Jittor copies the text at each call.
    """
    path = Path(__file__).with_name(name)
    return f'#include "{path}"  // {_digest(path)}'


def _digest(path):
    """Return the digest of a header and of those it includes.

    They are spelled "# include", because Jittor looks for files of "#include" in its own folders.
    """
    source = path.read_bytes()
    names = re.findall('^# include "(.+?)"', source.decode(), re.M)
    included = map(path.with_name, names)
    return hashlib.sha1(source + "".join(map(_digest, included)).encode()).hexdigest()


def _headers(cpu, cuda):
    return {"cpu_header": _include(cpu), "cuda_header": _include(cuda)}


# The two files of a pair have functions of the same names and arguments.
GEMM = _headers("gemm.h", "gemm.cuh")
ATTENTION = _headers("attention.h", "attention.cuh")
CONV = _headers("conv.h", "conv.cuh")
WINOGRAD = _headers("winograd.h", "conv.cuh")
NORM = _headers("norm.h", "norm.cuh")
LAYERS = _headers("layers.h", "layers.cuh")
OPTIMIZER = _headers("optimizer.h", "optimizer.cuh")


def run_kernel(headers, shape, inputs, source):
    """Run an operator with one float32 output; headers: a constant from above."""
    return jt.code(shape, "float32", inputs, **headers, cpu_src=source, cuda_src=source)


def run_multi_output_kernel(headers, shapes, inputs, source):
    """Run an operator with several float32 outputs."""
    dtypes = ["float32"] * len(shapes)
    return jt.code(shapes, dtypes, inputs, **headers, cpu_src=source, cuda_src=source)


def append_inputs(inputs, *extras):
    """Append those extras that are not None; return all inputs and each extra's C++ expression."""
    pointers = []
    for extra in extras:
        pointers.append("nullptr" if extra is None else f"in{len(inputs)}_p")
        inputs = inputs if extra is None else [*inputs, extra]
    return inputs, pointers


def uses_cuda():
    """Return True if operators run on the GPU."""
    return bool(jt.flags.use_cuda)


def has_kernels():
    """Return True if the operators of the headers above can run: with CUDA or with oneDNN."""
    return uses_cuda() or jt.compile_extern.mkl_ops is not None
