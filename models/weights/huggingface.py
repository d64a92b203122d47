"""Folders of weights as transformers' `save_pretrained` writes them, and their config.json.

Reading and writing needs no transformers.
"""

import json
import re
from pathlib import Path

from models.architecture import BASIC_BLOCKS, DEPTHS
from util.errors import InputError
from util.files import make_folder, replacing

from .huggingface_names import to_huggingface
from .safetensors_file import write_safetensors

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
# Of these the first one that a folder has is read; an index lists the parts of a large model.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
RESNETS = [name for name in DEPTHS if name != "tiny"]
_NO_NAME = re.compile(r"N/A|LABEL_\d+")  # of an id that is no class, and where nobody gave names

# ---- config.json


def flags_of(config, path):
    """main.py's flags, and the classes (id -> name), of what config.json holds.

    Raises InputError, which names path, for a model that this program does not have.
    """
    kind = config.get("model_type")
    if kind != "detr":
        raise InputError(f"{path}: is of a model of type {kind!r:.80}; only detr's weights fit")
    for name, value in (("activation_function", "relu"), ("num_channels", 3)):
        if config.get(name, value) != value:
            raise InputError(f"{path}: its {name} is {config[name]!r:.80}; only {value} fits")
    flags = {"backbone": _backbone_of(config, path), "dilation": _is_dilated(config)}
    for flag, names, default in (
        ("enc_layers", ["encoder_layers"], 6),
        ("dec_layers", ["decoder_layers"], 6),
        ("nheads", ["encoder_attention_heads", "decoder_attention_heads"], 8),
        ("dim_feedforward", ["encoder_ffn_dim", "decoder_ffn_dim"], 2048),
        ("hidden_dim", ["d_model"], 256),
        ("num_queries", ["num_queries"], 100),
    ):
        values = [config.get(name, default) for name in names]
        if any(type(value) is not int or value != values[0] for value in values):
            found = " and ".join(f"{name} {value!r:.80}" for name, value in zip(names, values))
            raise InputError(f"{path}: has {found}; only one whole number fits")
        flags[flag] = values[0]
    position = config.get("position_embedding_type", "sine")
    if position not in ("sine", "learned"):
        raise InputError(f"{path}: its position_embedding_type is {position!r:.80}")
    flags.update(position_embedding=position, backbone_norm="frozen", pre_norm=False)
    labels = config.get("id2label") or {}
    if not isinstance(labels, dict) or not all(
        str(number).isdecimal() and isinstance(name, str) for number, name in labels.items()
    ):
        raise InputError(f"{path}: its id2label is not a dictionary id -> name")
    classes = {int(number): name for number, name in labels.items() if not _NO_NAME.fullmatch(name)}
    return flags, classes


def _backbone_of(config, path):
    """The ResNet's name: of timm, or of transformers' own ResNet by its blocks."""
    backbone = config.get("backbone_config") or {}
    if not isinstance(backbone, dict):
        raise InputError(f"{path}: its backbone_config is no dictionary")
    if backbone.get("model_type") == "resnet":
        # Where a stage halves the image: the weights fit all the same.
        for name in ("downsample_in_bottleneck", "downsample_in_first_stage"):
            if backbone.get(name):
                raise InputError(f"{path}: its backbone_config has {name}; only without it fits")
        is_basic = backbone.get("layer_type", "bottleneck") == "basic"
        depths = backbone.get("depths", [3, 4, 6, 3])
        for name in RESNETS:
            if list(DEPTHS[name]) == depths and (name in BASIC_BLOCKS) == is_basic:
                return name
        name = f"resnet of {depths!r:.80} blocks"
    else:
        name = backbone.get("backbone") or config.get("backbone") or "resnet50"
        name = str(name).split(".")[0]  # timm's name of the weights that it began with
    if name not in RESNETS:
        raise InputError(f"{path}: its backbone is {name:.80}; there are {', '.join(RESNETS)}")
    return name


def _is_dilated(config):
    return bool(
        config.get("dilation") or (config.get("backbone_config") or {}).get("output_stride") == 16
    )


def make_config(architecture, classes):
    """What config.json holds.

    architecture: architecture.Architecture; classes: dictionary id -> name.
    """
    labels = {
        str(i): classes.get(i, "N/A") if classes else f"LABEL_{i}"
        for i in range(architecture.num_classes)
    }
    return {
        "architectures": [
            "DetrForSegmentation" if architecture.masks else "DetrForObjectDetection"
        ],
        "model_type": "detr",
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "backbone": architecture.backbone,
        "dilation": architecture.dilation,
        "num_queries": architecture.num_queries,
        "d_model": architecture.hidden_dim,
        "encoder_layers": architecture.enc_layers,
        "decoder_layers": architecture.dec_layers,
        "encoder_attention_heads": architecture.nheads,
        "decoder_attention_heads": architecture.nheads,
        "encoder_ffn_dim": architecture.dim_feedforward,
        "decoder_ffn_dim": architecture.dim_feedforward,
        "position_embedding_type": architecture.position_embedding,
        "id2label": labels,
        "label2id": {name: int(number) for number, name in labels.items()},
    }


def make_preprocessor(eval_size, max_size):
    """What preprocessor_config.json holds, which `AutoImageProcessor` reads."""
    return {
        "image_processor_type": "DetrImageProcessor",
        "size": {"shortest_edge": eval_size, "longest_edge": max_size},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }


def sizes_of(preprocessor):
    """main.py's flags of what preprocessor_config.json holds, {} where it says nothing of them."""
    size = preprocessor.get("size")
    if not isinstance(size, dict):  # older ones have two numbers
        size = {"shortest_edge": size, "longest_edge": preprocessor.get("max_size")}
    flags = {"eval_size": size.get("shortest_edge"), "max_size": size.get("longest_edge")}
    return {name: value for name, value in flags.items() if type(value) is int}


# ---- folders


def read_config(path):
    """What a config.json holds. Raises InputError."""
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a folder as save_pretrained writes it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON ({str(error)[:200]}); download it again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds no JSON object; download it again")
    return config


def weight_files(folder):
    """The paths of the files that make the weights in a folder, Path. Raises InputError."""
    for name in WEIGHTS:
        path = folder / name
        if path.is_file():
            parts = parts_of(path) if path.suffix == ".json" else [name]
            for part in parts:
                if not (folder / part).is_file():
                    raise InputError(f"{path}: {part} is missing; download it, too")
            return [folder / part for part in parts]
    raise InputError(
        f"{folder}: has no {WEIGHTS[0]} or {WEIGHTS[2]}; give a folder as save_pretrained writes "
        "it, or a file"
    )


def parts_of(index):
    """The names of the files that an index lists, sorted. Raises InputError."""
    weight_map = read_config(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no weight_map; download it again")
    for name, part in weight_map.items():
        if not isinstance(part, str) or Path(part).name != part:
            raise InputError(f"{index}: {name:.80} is in {part!r:.80}, which is no file beside it")
    return sorted(set(weight_map.values()))


def check_exportable(architecture, source):
    """Raises InputError, which names source, for a model that transformers does not have."""
    for fault, what in (
        (architecture.backbone == "tiny", "--backbone tiny"),
        (architecture.backbone_norm == "group", "--backbone_norm group"),
        (architecture.pre_norm, "--pre_norm"),
    ):
        if fault:
            raise InputError(f"{source}: was trained with {what}, which transformers does not have")


def write_folder(folder, state, classes, architecture, eval_size=800, max_size=1333):
    """Writes a folder (Path) that transformers' `from_pretrained` loads.

    state: the model's, name -> array; classes: dictionary id -> name, {} where nobody gave names;
    architecture: architecture.Architecture; eval_size, max_size: of images, pixels. Raises
    InputError where it cannot be written.
    """
    make_folder(folder)
    config = make_config(architecture, classes)
    with replacing(folder / WEIGHTS[0]) as file:
        write_safetensors(to_huggingface(state), file)
    preprocessor = make_preprocessor(eval_size, max_size)
    for name, content in ((CONFIG, config), (PREPROCESSOR, preprocessor)):
        with replacing(folder / name) as file:
            file.write(json.dumps(content, indent=2).encode())
