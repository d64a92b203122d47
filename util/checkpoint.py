"""Saves and loads checkpoints and weights: the program's own `.pkl`, PyTorch's files, and addresses of such files.

Reading never executes anything a file says, and loading into a model or an optimizer is strict. As a command,
`python -m util.checkpoint IN OUT.pth` writes a checkpoint's model as a PyTorch file for the original DETR.
"""
import argparse
import hashlib
import math
import os
import pickle
import re
import sys
from pathlib import Path

import numpy as np

from datasets import NUM_CLASSES
from datasets.names import COCO, STUFF
from util import pickles
from util.download import MAX_BYTES, download, user_cache
from util.errors import InputError, printable
from util.files import replacing
from util.torch_file import is_torch_file, read_torch_file, write_torch_file

IMAGENET_WEIGHTS = {
    "resnet18": "https://download.pytorch.org/models/resnet18-f37072fd.pth",
    "resnet34": "https://download.pytorch.org/models/resnet34-b627a593.pth",
    "resnet50": "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    "resnet101": "https://download.pytorch.org/models/resnet101-63fe2227.pth",
    "resnet152": "https://download.pytorch.org/models/resnet152-394f9c45.pth",
}

# A `.pkl` is what `jt.save` writes: a pickle, its SHA-1, and this mark.
_MARK = b"HCAJSLHD"
_TRAILER = 20 + len(_MARK)


class _DType(pickles.Pending):
    """`numpy.dtype(name, align, copy)`, and then its byte order."""

    def __init__(self, name, *_align_and_copy):
        super().__init__()
        if not re.fullmatch(r"[biufc]\d{1,2}", name):
            raise ValueError(f"arrays of {name!r}")
        self.name = name

    def build(self, state):
        version, order, *rest = state
        if order not in ("<", ">", "|", "=") or rest[:3] != [None, None, None]:
            raise ValueError("a dtype with an unexpected state")
        return np.dtype(order + self.name)


class _Array(pickles.Pending):
    """`numpy._reconstruct(…)`, and then shape, type and content."""

    def __init__(self, *_class_and_placeholders):
        super().__init__()

    def build(self, state):
        _version, shape, dtype, by_columns, content = state
        if min((0, *shape)) < 0 or math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError(f"{len(content)} bytes for an array of shape {shape} of {dtype}")
        return np.ndarray(shape, dtype, content, order="F" if by_columns else "C")


def _scalar(dtype, content):
    return np.frombuffer(content, dtype, 1)[0]


_GLOBALS = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _DType,
    **{(f"numpy.{core}.multiarray", name): value  # NumPy 2 says _core
       for core in ("core", "_core") for name, value in (("_reconstruct", _Array), ("scalar", _scalar))},
}


def save_checkpoint(obj, path):
    """Write obj to path, so that `load_checkpoint` and `jt.load` return it.

    obj: a dict of plain containers, numbers, strings and NumPy arrays; TypeError for anything else. A failure leaves an
    earlier file at path as it was, and raises InputError where the disk is full or the folder cannot be written.
    """
    with replacing(path) as file:
        hashed = _HashedWriter(file)
        _Pickler(hashed, protocol=4).dump(obj)
        file.write(hashed.sha1.digest() + _MARK)


def load_checkpoint(source):
    """The dict in a checkpoint or weights file; its key "model" is a dict of name -> NumPy array.

    source: the path of a `.pkl` of this program or of a PyTorch file, told apart by their content, or an `https://`
    address of one, whose name carries its checksum. A file that holds a bare state dict gives {"model": state dict}.
    Raises InputError for a file that is missing, damaged, of neither form, or that would need code to be run.
    """
    source = str(source)
    path = download(source, user_cache()) if "://" in source else Path(source)
    content = _read(path)
    if not isinstance(content, dict):
        raise InputError(f"{source}: holds a {type(content).__name__} instead of a state dict; give a checkpoint")
    checkpoint = content if "model" in content else {"model": content}
    model = checkpoint["model"]
    if not isinstance(model, dict) or not model:
        raise InputError(f"{source}: its model is not a state dict (name -> array); save the model's state dict")
    strange = [str(name) for name, value in model.items()
               if not (isinstance(name, str) and isinstance(value, np.ndarray))]
    if strange:
        raise InputError(f"{source}: its model is not a state dict: {summarize_names('not a name with an array', strange)[0]}; "
                         "give a file that holds the state dict itself or under the key 'model'")
    return {**checkpoint, "model": dict(model)}


def class_names(checkpoint, source):
    """The classes that a loaded checkpoint was saved with, a dictionary category id -> name; {} where it has none.

    Raises InputError, which names source, where they are something else.
    """
    classes = checkpoint.get("classes", {})
    if not isinstance(classes, dict) or not all(type(number) is int and isinstance(name, str) for number, name in classes.items()):
        raise InputError(f"{source}: its classes are not a dictionary id -> name; the file is damaged, take another checkpoint")
    return {number: printable(name) for number, name in classes.items()}


def count_classes(checkpoint):
    """The number of classes of a loaded checkpoint's class head, highest category id + 1; 0 where it has no such head."""
    head = checkpoint["model"].get("class_embed.bias", checkpoint["model"].get("detr.class_embed.bias"))
    return 0 if head is None else head.size - 1


def published_names(checkpoint):
    """The class names of COCO where the weights have as many classes as the original's published ones, else {}."""
    return {NUM_CLASSES["coco"]: COCO, NUM_CLASSES["coco_panoptic"]: {**COCO, **STUFF}}.get(count_classes(checkpoint), {})


def model_state(model):
    """The model's parameters and buffers as a dict of name -> NumPy array (copies), in the model's order."""
    return {name: var.numpy() for name, var in model.named_parameters()}


def weights_digest(model):
    """Hex digits that are the same for the same weights, bit by bit."""
    return hashlib.sha1(b"".join(array.tobytes() for array in model_state(model).values())).hexdigest()


def load_model_state(model, state, source):
    """Copy state (name -> float array) into the model's Vars in place; which of them train does not change.

    PyTorch's `num_batches_tracked` entries are ignored, as in the original. Raises InputError, which names source and
    lists the names that are missing, unexpected, or whose shape or type does not fit; then the model is unchanged.
    """
    import jittor as jt  # here, because converting a file needs no compiled Jittor
    variables = dict(model.named_parameters())
    state = {name: value for name, value in state.items()
             if name in variables or not name.endswith("num_batches_tracked")}
    problems = _misfits({name: var.shape for name, var in variables.items()},
                        {name: value.shape for name, value in state.items()})
    problems += summarize_names("not of floating point", [name for name, value in state.items() if value.dtype.kind != "f"])
    if problems:
        raise InputError(f"{source}: does not fit the model: {'; '.join(problems)}")
    for name, var in variables.items():
        var.update(jt.array(np.ascontiguousarray(state[name], np.float32)))
    jt.sync_all()  # Jittor cannot compile a pending array of one element (out_lay.bias) together with its use


def optimizer_state(optimizer):
    """The state of a `jittor.optim.AdamW` as plain containers and arrays (copies).

    Every group of the optimizer has, beside "params", their "names". Returns {"state": {name: {"step": int,
    "exp_avg", "exp_avg_sq": float32 array}}, "groups": [{"names", "lr", "weight_decay", "betas", "eps", …}]}.
    """
    state, groups = {}, []
    for group in optimizer.param_groups:
        for name, average, square in zip(group["names"], group["m"], group["values"]):
            state[name] = {"step": optimizer.n_step, "exp_avg": average.numpy(), "exp_avg_sq": square.numpy()}
        settings = {key: group.get(key, getattr(optimizer, key)) for key in ("lr", "weight_decay", "betas", "eps")}
        if "initial_lr" in group:
            settings["initial_lr"] = group["initial_lr"]
        groups.append({"names": list(group["names"]), **settings})
    return {"state": state, "groups": groups}


def load_optimizer_state(optimizer, state, source):
    """Put back what `optimizer_state` returned, to the last bit.

    Raises InputError, which names source, where the groups hold other parameters or shapes; the optimizer is then
    unchanged.
    """
    import jittor as jt
    if state.keys() != {"state", "groups"}:
        raise InputError(f"{source}: its optimizer is not one of this program's; only its weights can be loaded")
    groups, moments = optimizer.param_groups, state["state"]
    problems = _misfits({name: var.shape for group in groups for name, var in zip(group["names"], group["params"])},
                        {name: moment["exp_avg"].shape for name, moment in moments.items()})
    if not problems and [group["names"] for group in groups] != [group["names"] for group in state["groups"]]:
        problems = ["the parameters are grouped in another way"]
    if problems:
        raise InputError(f"{source}: its optimizer does not fit: {'; '.join(problems)}; resume with the same flags")
    for group, saved in zip(groups, state["groups"]):
        group.update({key: value for key, value in saved.items() if key != "names"})
        for name, average, square in zip(group["names"], group["m"], group["values"]):
            average.update(jt.array(moments[name]["exp_avg"]))
            square.update(jt.array(moments[name]["exp_avg_sq"]))
            optimizer.n_step = moments[name]["step"]


def check_training_state(checkpoint, source):
    """Raises InputError, which names source, unless all that a resumed training needs beside weights is there and of its type."""
    number = (int, float)
    moments = {"step": int, "exp_avg": np.ndarray, "exp_avg_sq": np.ndarray}
    group = {"names": [str], "lr": number, "weight_decay": number, "betas": (tuple, list), "eps": number}
    form = {"epoch": int, "step": int, "processes": int, "lr_scheduler": {"step_size": int, "gamma": number, "last_epoch": int},
            "optimizer": {"state": {str: moments}, "groups": [group]}}
    if checkpoint.get("step"):
        form.update(images=int, args={"batch_size": int, "accum_steps": int, "seed": int},
                    meters={str: {"deque": [number], "total": number, "count": int}})
    elif "train_stats" in checkpoint:
        form["train_stats"] = {str: number}
    if fault := _misform(checkpoint, form):
        raise InputError(f"{source}: its state of the training is damaged or of another version of the program ({fault}); take "
                         "another checkpoint, or only its weights, with util.checkpoint")


def load_backbone(body, spec, backbone_name):
    """Load weights into body, a backbone's ResNet without its classifier.

    spec: "imagenet" (torchvision's V1 weights, downloaded once), "none" (keeps the random ones), or the path of such a
    file. backbone_name: "resnet50" and its kin. Raises InputError as `load_checkpoint` and `load_model_state` do, and
    where "imagenet" has no weights for the backbone or no network.
    """
    if spec == "none":
        return
    alternatives = "or use --backbone_weights none or --backbone_weights PATH"
    if spec == "imagenet" and backbone_name not in IMAGENET_WEIGHTS:
        raise InputError(f"--backbone_weights imagenet: there are none for {backbone_name}; "
                         f"choose one of {', '.join(IMAGENET_WEIGHTS)}, {alternatives}")
    source = spec
    if spec == "imagenet":
        try:
            source = download(IMAGENET_WEIGHTS[backbone_name], user_cache())
        except InputError as error:
            raise InputError(f"{error}, {alternatives}") from error
    state = load_checkpoint(source)["model"]
    load_model_state(body, {name: value for name, value in state.items() if not name.startswith("fc.")}, source)


def summarize_names(kind, names):
    """[] for no names, else [one phrase with their number and the first five]."""
    more = ", …" if len(names) > 5 else ""
    return [f"{len(names)} {kind} ({', '.join(name[:120] for name in names[:5])}{more})"] if names else []


def main():
    parser = argparse.ArgumentParser(prog="python -m util.checkpoint",
                                     description="Write a checkpoint's model as a PyTorch file for the original DETR.")
    parser.add_argument("source", metavar="IN", help="a checkpoint or weights, as for --resume")
    parser.add_argument("target", metavar="OUT.pth", help="the PyTorch file to write")
    arguments = parser.parse_args()
    try:
        if Path(arguments.source).resolve() == Path(arguments.target).resolve():
            raise InputError(f"{arguments.target}: is the input itself; name another file")
        model = load_checkpoint(arguments.source)["model"]
        with replacing(arguments.target) as file:
            write_torch_file({"model": model}, file)
    except InputError as error:
        sys.exit(f"error: {error}")


def _misform(value, form, place="checkpoint"):
    """Where value differs from form, or None. form: a type or types; [form of each item]; {key: form}; {str: form of each}."""
    if isinstance(form, list):
        if not isinstance(value, list):
            return f"{place} is no list"
        return next(filter(None, (_misform(item, form[0], f"{place}[{i}]") for i, item in enumerate(value))), None)
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return f"{place} is no dictionary"
        forms = {key: form[str] for key in value} if str in form else form
        return next(filter(None, (_misform(value.get(key), forms[key], f"{place}[{key!r:.80}]") for key in forms)), None)
    return None if isinstance(value, form) else f"{place} is no {form.__name__ if isinstance(form, type) else 'number'}"


def _misfits(expected, found):
    """One phrase for each kind of difference between two dicts of name -> shape."""
    shapes = [f"{name} {list(found[name])} instead of {list(shape)}" for name, shape in expected.items()
              if name in found and tuple(found[name]) != tuple(shape)]
    return (summarize_names("missing", [name for name in expected if name not in found])
            + summarize_names("unexpected", [name for name in found if name not in expected])
            + summarize_names("of another shape", shapes))


class _HashedWriter:
    """Passes what is written on to file, and keeps its SHA-1."""

    def __init__(self, file):
        self.file = file
        self.sha1 = hashlib.sha1()

    def write(self, data):
        self.sha1.update(data)
        return self.file.write(data)


class _Pickler(pickle.Pickler):
    allowed = (np.ndarray, np.dtype, np.zeros(1).__reduce__()[0], np.float32(0).__reduce__()[0])

    def reducer_override(self, obj):
        # Asked about everything but plain containers, numbers and strings.
        array = isinstance(obj, (np.ndarray, np.generic)) and not obj.dtype.hasobject
        if array or isinstance(obj, np.dtype) or any(obj is allowed for allowed in self.allowed):
            return NotImplemented
        raise TypeError(f"a checkpoint cannot hold a {type(obj).__name__}: {str(obj)[:80]}")


def _read(path):
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: cannot be read (not a file); give a checkpoint")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than {MAX_BYTES} bytes, as no checkpoint is; check the path")
        return read_torch_file(path) if is_torch_file(path) else _read_own(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def _read_own(path):
    if fault := _checksum_fault(path):
        raise InputError(f"{path}: {fault}; check the path, or download or copy the file again{_newest_intact(path)}")
    with open(path, "rb") as file:
        try:
            return pickles.load(file, path, _GLOBALS)
        except InputError:
            raise
        except Exception as error:
            # Only a forged file gets here, and it may raise almost any exception.
            raise InputError(f"{path}: the file is damaged; copy it again ({type(error).__name__}: {str(error)[:200]})") from error


def _checksum_fault(path):
    """What is wrong with the checksum at the file's end, as a phrase, or None."""
    with open(path, "rb") as file:
        left, sha1 = max(0, os.fstat(file.fileno()).st_size - _TRAILER), hashlib.sha1()
        while chunk := file.read(min(left, 1 << 20)):
            sha1.update(chunk)
            left -= len(chunk)
        checksum, mark = file.read(20), file.read()
    if mark != _MARK:
        return "neither a checkpoint of this program nor a PyTorch file, or truncated"
    return None if checksum == sha1.digest() else "the file is damaged (its checksum does not match)"


def _newest_intact(path):
    """The end of a sentence that names the newest other checkpoint in the folder whose checksum is right; or ''."""
    others = [other for other in path.parent.glob("checkpoint*.pkl") if other.name != path.name]
    others.sort(key=lambda other: other.stat().st_mtime, reverse=True)
    return next((f", or take {other}, the newest intact one there" for other in others if not _checksum_fault(other)), "")


if __name__ == "__main__":
    main()
