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


GEMM = _include("gemm.h")
CONV = _include("conv.h")
WINOGRAD = _include("winograd.h")
NORM = _include("norm.h")
LAYERS = _include("layers.h")
OPTIMIZER = _include("optimizer.h")
CUDA = _include("kernels.cuh")


def run_kernel(header, shape, inputs, source="", cuda_source=""):
    """Run an operator with one float32 output; header: of the CPU source, a constant from above."""
    return jt.code(shape, "float32", inputs, **_sources(header, source, cuda_source))


def run_multi_output_kernel(header, shapes, inputs, source="", cuda_source=""):
    """Run an operator with several float32 outputs."""
    dtypes = ["float32"] * len(shapes)
    return jt.code(shapes, dtypes, inputs, **_sources(header, source, cuda_source))


def _sources(header, cpu, cuda):
    cuda_header = CUDA if cuda else ""  # so that editing kernels.cuh recompiles no CPU operator
    return dict(cpu_header=header, cpu_src=cpu, cuda_header=cuda_header, cuda_src=cuda)
