"""A model's weights as arrays, and back. Loading is strict."""

import hashlib

import numpy as np

from util.backend import jt
from util.errors import InputError

from .mismatches import find_mismatches


def model_state(model):
    """The model's parameters and buffers, name -> NumPy array (a copy), in the model's order."""
    return {name: var.numpy() for name, var in model.named_parameters()}


def weights_digest(model):
    """Hex digits that are the same for the same weights, bit by bit."""
    return hashlib.sha1(
        b"".join(array.tobytes() for array in model_state(model).values())
    ).hexdigest()


def load_model_state(model, state, source):
    """Copies state (name -> float array) into the model; which weights train does not change.

    PyTorch's `num_batches_tracked` entries are ignored, as in the original. Raises InputError,
    which names source and lists the names that are missing, unexpected, or whose shape or type does
    not fit; then the model is unchanged.
    """
    variables = dict(model.named_parameters())
    if problems := find_mismatches({name: var.shape for name, var in variables.items()}, state):
        raise InputError(f"{source}: does not fit the model: {'; '.join(problems)}")
    for name, var in variables.items():
        var.update(jt.array(np.ascontiguousarray(state[name], np.float32)))
    # Jittor cannot compile a pending array of one element (out_lay.bias) together with its use
    jt.sync_all()
