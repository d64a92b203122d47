"""Convert a model's weights to arrays and back. Loading is strict."""

import hashlib
from pathlib import Path

import numpy as np

from util.backend import jt, nn
from util.errors import InputError

from .mismatches import find_mismatches


def model_state(model: nn.Module) -> dict[str, np.ndarray]:
    """Return copies of the model's parameters and buffers, name -> array, in the model's order."""
    return {name: var.numpy() for name, var in model.named_parameters()}


def hash_weights(model):
    """Return a hexadecimal digest of the weights."""
    arrays = model_state(model).values()
    return hashlib.sha1(b"".join(array.tobytes() for array in arrays)).hexdigest()


def load_model_state(model: nn.Module, state: dict[str, np.ndarray], source: str | Path) -> None:
    """Copy state (name -> float array) into the model. Frozen parameters stay frozen.

    PyTorch's `num_batches_tracked` is ignored, as in the original. Raises InputError, which names
    source and lists weights that are missing, unexpected, of another shape or type, or not finite;
    the model is then unchanged.
    """
    variables = dict(model.named_parameters())
    if problems := find_mismatches({name: var.shape for name, var in variables.items()}, state):
        raise InputError(f"{source}: does not fit the model: {'; '.join(problems)}")
    if diverged := [name for name in variables if not np.isfinite(state[name]).all()]:
        raise InputError(
            f"{source}: {len(diverged)} of {len(variables)} weights are not finite, such as "
            f"{diverged[0]}; the training that wrote them has diverged: use earlier ones"
        )
    for name, var in variables.items():
        var.update(jt.array(np.ascontiguousarray(state[name], np.float32)))
    jt.sync_all()  # Jittor cannot fuse a pending array of one element (out_lay.bias) with its use
