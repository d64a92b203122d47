"""Reads checkpoints and weights, of this program or of PyTorch."""

import numpy as np

from util.download import MAX_BYTES
from util.errors import InputError, printable
from util.jittor_file import read_jittor_file

from .fetch import local_path
from .huggingface import CONFIG, PREPROCESSOR, flags_of, read_config, sizes_of, weight_files
from .huggingface_names import from_huggingface, is_of_huggingface
from .mismatches import summarize_names
from .safetensors_file import is_safetensors_file, read_safetensors
from .torch_file import is_torch_file, read_torch_file


def load_checkpoint(source):
    """The dict in a checkpoint or weights file; its key "model" is a dict of name -> NumPy array.

    source: the path of a `.pkl` of this program, of a PyTorch or a safetensors file, told apart by
    their content, or of a folder of transformers; or an address, see `fetch.local_path`. A file
    that holds a bare state dict gives {"model": state dict}. Weights of transformers get the
    original's names, and the keys "args" and "classes" from the config.json that is beside them.
    Raises InputError for a file that is missing, damaged, of another form, or that would need code
    to be run.
    """
    source = str(source)
    path = local_path(source)
    try:
        content = _read_all(weight_files(path)) if path.is_dir() else _read(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check the path"
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"{source}: holds a {type(content).__name__} instead of a state dict; give a checkpoint"
        )
    checkpoint = content if "model" in content else {"model": content}
    model = checkpoint["model"]
    if not isinstance(model, dict) or not model:
        raise InputError(
            f"{source}: its model is not a state dict (name -> array); save the model's state dict"
        )
    strange = [
        str(name)
        for name, value in model.items()
        if not (isinstance(name, str) and isinstance(value, np.ndarray))
    ]
    if strange:
        raise InputError(
            f"{source}: its model is not a state dict: "
            f"{summarize_names('not a name with an array', strange)[0]}; give a file that holds "
            "the state dict itself or under the key 'model'"
        )
    if is_of_huggingface(model):
        return _of_huggingface(model, path if path.is_dir() else path.parent)
    return {**checkpoint, "model": dict(model)}


def _of_huggingface(state, folder):
    """The checkpoint of weights with transformers' names, which are in folder (Path)."""
    model = from_huggingface(state)
    checkpoint = {"model": model}
    if (folder / CONFIG).is_file():
        flags, classes = flags_of(read_config(folder / CONFIG), folder / CONFIG)
        if (folder / PREPROCESSOR).is_file():
            flags.update(sizes_of(read_config(folder / PREPROCESSOR)))
        masks = any(name.startswith("mask_head.") for name in model)
        checkpoint.update(args={**flags, "masks": masks}, classes=classes)
    return checkpoint


def class_names(checkpoint, source):
    """A checkpoint's classes, a dictionary category id -> name; {} where it has none.

    Raises InputError, which names source, where they are something else.
    """
    classes = checkpoint.get("classes", {})
    if not isinstance(classes, dict) or not all(
        type(number) is int and isinstance(name, str) for number, name in classes.items()
    ):
        raise InputError(
            f"{source}: its classes are not a dictionary id -> name; the file is damaged, take "
            "another checkpoint"
        )
    return {number: printable(name) for number, name in classes.items()}


def num_classes_of(checkpoint):
    """Highest category id + 1 of a checkpoint's class head; 0 where it has none."""
    head = checkpoint["model"].get(
        "class_embed.bias", checkpoint["model"].get("detr.class_embed.bias")
    )
    return 0 if head is None else head.size - 1


def _read_all(paths):
    """The state dict whose parts are in these files."""
    state = {}
    for path in paths:
        part = _read(path)
        if not isinstance(part, dict):
            raise InputError(f"{path}: holds a {type(part).__name__} instead of a state dict")
        state.update(part)
    return state


def _read(path):
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: cannot be read (not a file); give a checkpoint")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(
            f"{path}: larger than {MAX_BYTES} bytes, as no checkpoint is; check the path"
        )
    if path.suffix == ".safetensors" or is_safetensors_file(path):
        return read_safetensors(path)
    return read_torch_file(path) if is_torch_file(path) else read_jittor_file(path)
