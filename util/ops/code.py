"""Operators from C++ and CUDA source, float32."""

import hashlib
from pathlib import Path

from util.backend import jt


def _include(name):
    """An include of a header of this folder, with its digest.

    The digest makes Jittor compile again when the file changes. The text is short because Jittor
    copies it at each call.
    """
    source = Path(__file__).with_name(name)
    return f'#include "{source}"  // {hashlib.sha1(source.read_bytes()).hexdigest()}'


HEADER, CUDA_HEADER = _include("kernels.h"), _include("kernels.cuh")


def code(shape, inputs, source, cuda_source=""):
    """The float32 result of an operator. Without cuda_source it is one of the CPU."""
    return jt.code(shape, "float32", inputs, **_sources(source, cuda_source))


def codes(shapes, inputs, source, cuda_source=""):
    """Several results of one operator."""
    return jt.code(shapes, ["float32"] * len(shapes), inputs, **_sources(source, cuda_source))


def _sources(cpu, cuda):
    # A change of kernels.cuh leaves operators without CUDA as they are compiled.
    return dict(
        cpu_header=HEADER, cpu_src=cpu, cuda_header=CUDA_HEADER if cuda else "", cuda_src=cuda
    )
