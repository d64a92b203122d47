"""Load checkpoints and weights of any supported format."""

from pathlib import Path

import numpy as np

from util.download import MAX_BYTES
from util.errors import InputError, escape_unprintable
from util.jittor_file import read_jittor_file

from .fetch import resolve_source
from .huggingface import (
    CONFIG,
    PREPROCESSOR,
    find_weight_files,
    parse_config,
    parse_preprocessor,
    read_config,
)
from .huggingface_names import from_huggingface, is_huggingface
from .mismatches import summarize_names
from .safetensors_file import is_safetensors_file, read_safetensors
from .torch_file import is_torch_file, read_torch_file


def load_checkpoint(source: str | Path) -> dict:
    """Load a checkpoint; its key "model" is a state dict, name -> NumPy array.

    source: the path of a `.pkl` of this program, a PyTorch or a safetensors file, which are told
    apart by their content, or a folder of transformers; or a URL, see `fetch.resolve_source`. A
    bare state dict becomes {"model": state dict}. Weights of transformers get the original's names,
    and the keys "args" and "classes" from the config.json beside them.
    Raises InputError if the file is missing or damaged, has an unsupported format, or cannot be
    read without running code.
    """
    source = str(source)
    path = resolve_source(source)
    try:
        content = _read_all(find_weight_files(path)) if path.is_dir() else _read(path)
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
    invalid = [
        str(name)
        for name, value in model.items()
        if not (isinstance(name, str) and isinstance(value, np.ndarray))
    ]
    if invalid:
        raise InputError(
            f"{source}: its model is not a state dict: "
            f"{summarize_names('not a name with an array', invalid)[0]}; give a file that holds "
            "the state dict itself or under the key 'model'"
        )
    if is_huggingface(model):
        return _convert_huggingface(model, path if path.is_dir() else path.parent)
    return {**checkpoint, "model": dict(model)}


def _convert_huggingface(state, folder):
    model = from_huggingface(state)
    checkpoint = {"model": model}
    if (folder / CONFIG).is_file():
        flags, classes = parse_config(read_config(folder / CONFIG), folder / CONFIG)
        if (folder / PREPROCESSOR).is_file():
            flags.update(parse_preprocessor(read_config(folder / PREPROCESSOR)))
        masks = any(name.startswith("mask_head.") for name in model)
        checkpoint.update(args={**flags, "masks": masks}, classes=classes)
    return checkpoint


def read_class_names(checkpoint, source):
    """Return a checkpoint's category id -> name; {} if it has no names.

    Raises InputError, which names source, if they are malformed.
    """
    classes = checkpoint.get("classes", {})
    if not isinstance(classes, dict) or not all(
        type(class_id) is int and isinstance(name, str) for class_id, name in classes.items()
    ):
        raise InputError(
            f"{source}: its classes do not map ids to names; the file is damaged, use another "
            "checkpoint"
        )
    return {class_id: escape_unprintable(name) for class_id, name in classes.items()}


def count_classes(checkpoint):
    """Return the highest category id + 1 of a checkpoint's class head; 0 if it has none."""
    model = checkpoint["model"]
    head = model.get("class_embed.bias", model.get("detr.class_embed.bias"))
    return 0 if head is None else head.size - 1


def has_training_state(checkpoint):
    """Return whether a checkpoint is one of a training run of this program, not only weights."""
    optimizer = checkpoint.get("optimizer")
    return isinstance(optimizer, dict) and "groups" in optimizer


def get_shapes_sizes(flags):
    """Return the image sizes of a training on the shapes, which are not resized; otherwise {}.

    flags: a checkpoint's; the result has values for img_scales, eval_size and max_size.
    """
    if flags.get("dataset_file") != "shapes" or "shapes_size" not in flags:
        return {}
    size = flags["shapes_size"]
    return {"img_scales": [size], "eval_size": size, "max_size": size}


def _read_all(paths):
    """Read and merge the shards of a state dict."""
    state = {}
    for path in paths:
        part = _read(path)
        if not isinstance(part, dict):
            raise InputError(
                f"{path}: holds a {type(part).__name__} instead of a state dict; download it again"
            )
        state.update(part)
    return state


def _read(path):
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: cannot be read (not a file); give a checkpoint")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(
            f"{path}: larger than {MAX_BYTES} bytes, so not a checkpoint; check the path"
        )
    if path.suffix == ".safetensors" or is_safetensors_file(path):
        return read_safetensors(path)
    return read_torch_file(path) if is_torch_file(path) else read_jittor_file(path)
