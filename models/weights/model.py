"""A model's weights as arrays, and back. Loading is strict."""

import hashlib

import numpy as np

from util.errors import InputError


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
    from util.backend import jt  # here, because converting a file needs no compiled Jittor

    variables = dict(model.named_parameters())
    if problems := misfits({name: var.shape for name, var in variables.items()}, state):
        raise InputError(f"{source}: does not fit the model: {'; '.join(problems)}")
    for name, var in variables.items():
        var.update(jt.array(np.ascontiguousarray(state[name], np.float32)))
    # Jittor cannot compile a pending array of one element (out_lay.bias) together with its use
    jt.sync_all()


def misfits(expected, state):
    """One phrase for each kind of difference between a state dict and what a model needs.

    expected: name -> shape; state: name -> array, in which PyTorch's `num_batches_tracked` may be.
    """
    found = {
        name: value
        for name, value in state.items()
        if name in expected or not name.endswith("num_batches_tracked")
    }
    strange = [name for name, value in found.items() if value.dtype.kind != "f"]
    return [
        *list_misfits(expected, {name: value.shape for name, value in found.items()}),
        *summarize_names("not of floating point", strange),
    ]


def summarize_names(kind, names):
    """[] for no names, else [one phrase with their number and the first five]."""
    if not names:
        return []
    examples = [name[:120] for name in names[:5]]
    if len(names) > 5:
        examples.append("…")
    return [f"{len(names)} {kind} ({', '.join(examples)})"]


def list_misfits(expected, found):
    """One phrase for each kind of difference between two dicts of name -> shape."""
    shapes = [
        f"{name} {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    return [
        *summarize_names("missing", [name for name in expected if name not in found]),
        *summarize_names("unexpected", [name for name in found if name not in expected]),
        *summarize_names("of another shape", shapes),
    ]
