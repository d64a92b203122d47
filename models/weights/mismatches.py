"""Describe mismatches between a state dict and a model."""


def find_mismatches(expected, state):
    """Return one message per type of mismatch between a state dict and the expected shapes.

    expected: name -> shape; state: name -> array; PyTorch's `num_batches_tracked` is ignored.
    """
    arrays = {
        name: value
        for name, value in state.items()
        if name in expected or not name.endswith("num_batches_tracked")
    }
    not_float = [name for name, value in arrays.items() if value.dtype.kind != "f"]
    return [
        *compare_shapes(expected, {name: value.shape for name, value in arrays.items()}),
        *summarize_names("not floating-point", not_float),
    ]


def summarize_names(kind, names):
    """Return [] if there are no names, else [a phrase with their number and the first five]."""
    if not names:
        return []
    examples = [name[:120] for name in names[:5]]
    if len(names) > 5:
        examples.append("…")
    return [f"{len(names)} {kind} ({', '.join(examples)})"]


def compare_shapes(expected, found):
    """Return a phrase for each kind of difference between two dicts name -> shape."""
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
