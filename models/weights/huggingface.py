"""Read and write folders like those of transformers' `save_pretrained`, without transformers."""

import json
import re
from pathlib import Path

from models.architecture import BASIC_BLOCK_BACKBONES, DEPTHS
from util.errors import InputError
from util.files import atomic_write, make_folder

from .huggingface_names import to_huggingface
from .safetensors_file import write_safetensors

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
# Weight files in order of preference; an index lists a model's shards.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
RESNETS = [name for name in DEPTHS if name != "tiny"]
_PLACEHOLDER = re.compile(r"N/A|LABEL_\d+")  # for an id that is not a class or has no name
# (flag of main.py, its names in config.json, transformers' default)
_FLAGS = (
    ("num_queries", ["num_queries"], 100),
    ("hidden_dim", ["d_model"], 256),
    ("enc_layers", ["encoder_layers"], 6),
    ("dec_layers", ["decoder_layers"], 6),
    ("nheads", ["encoder_attention_heads", "decoder_attention_heads"], 8),
    ("dim_feedforward", ["encoder_ffn_dim", "decoder_ffn_dim"], 2048),
)

# ---- config.json


def parse_config(config, path):
    """Return main.py's flags and the classes (id -> name) for the content of config.json.

    Raises InputError, which names path, for a model that this program does not support.
    """
    kind = config.get("model_type")
    if kind != "detr":
        raise InputError(f"{path}: model_type is {kind!r:.80}; only detr is supported")
    for name, value in (("activation_function", "relu"), ("num_channels", 3)):
        if config.get(name, value) != value:
            raise InputError(f"{path}: {name} is {config[name]!r:.80}; only {value} is supported")
    flags = {"backbone": _get_backbone(config, path), "dilation": _is_dilated(config)}
    for flag, names, default in _FLAGS:
        values = [config.get(name, default) for name in names]
        if any(type(value) is not int or value != values[0] for value in values):
            found = " and ".join(f"{name} is {value!r:.80}" for name, value in zip(names, values))
            raise InputError(f"{path}: {found}; only one integer is supported")
        flags[flag] = values[0]
    position = config.get("position_embedding_type", "sine")
    if position not in ("sine", "learned"):
        raise InputError(
            f"{path}: position_embedding_type is {position!r:.80}; only sine and learned are "
            "supported"
        )
    flags.update(position_embedding=position, backbone_norm="frozen", pre_norm=False)
    labels = config.get("id2label") or {}
    if not isinstance(labels, dict) or not all(
        str(number).isdecimal() and isinstance(name, str) for number, name in labels.items()
    ):
        raise InputError(f"{path}: id2label does not map ids to names; give a name for each id")
    named = {i: name for i, name in labels.items() if not _PLACEHOLDER.fullmatch(name)}
    return flags, {int(i): name for i, name in named.items()}


def _get_backbone(config, path):
    """Return the ResNet's name: timm's, or inferred from the depths of transformers' own ResNet."""
    backbone = config.get("backbone_config") or {}
    if not isinstance(backbone, dict):
        raise InputError(f"{path}: backbone_config is not an object; download the file again")
    if backbone.get("model_type") == "resnet":
        # They move the stride, which a shape check cannot detect.
        for name in ("downsample_in_bottleneck", "downsample_in_first_stage"):
            if backbone.get(name):
                raise InputError(f"{path}: backbone_config has {name}, which is not supported")
        is_basic = backbone.get("layer_type", "bottleneck") == "basic"
        depths = backbone.get("depths", [3, 4, 6, 3])
        for name in RESNETS:
            if list(DEPTHS[name]) == depths and (name in BASIC_BLOCK_BACKBONES) == is_basic:
                return name
        name = f"resnet of {depths!r:.80} blocks"
    else:
        name = backbone.get("backbone") or config.get("backbone") or "resnet50"
        name = str(name).split(".")[0]  # strip timm's pretrained tag
    if name not in RESNETS:
        raise InputError(f"{path}: backbone is {name:.80}; only {', '.join(RESNETS)} are supported")
    return name


def _is_dilated(config):
    backbone = config.get("backbone_config") or {}
    return bool(config.get("dilation") or backbone.get("output_stride") == 16)


def make_config(architecture, classes):
    """Return the content of config.json. classes: id -> name."""
    labels = {
        str(i): classes.get(i, "N/A") if classes else f"LABEL_{i}"
        for i in range(architecture.num_classes)
    }
    name = "DetrForSegmentation" if architecture.masks else "DetrForObjectDetection"
    return {
        "architectures": [name],
        "model_type": "detr",
        "use_timm_backbone": True,
        "use_pretrained_backbone": False,
        "backbone": architecture.backbone,
        "dilation": architecture.dilation,
        **{name: getattr(architecture, flag) for flag, names, _ in _FLAGS for name in names},
        "position_embedding_type": architecture.position_embedding,
        "id2label": labels,
        "label2id": {name: int(number) for number, name in labels.items()},
    }


def parse_preprocessor(preprocessor):
    """Return main.py's flags that preprocessor_config.json sets."""
    size = preprocessor.get("size")
    if not isinstance(size, dict):  # older versions store two integers
        size = {"shortest_edge": size, "longest_edge": preprocessor.get("max_size")}
    flags = {"eval_size": size.get("shortest_edge"), "max_size": size.get("longest_edge")}
    return {name: value for name, value in flags.items() if type(value) is int}


# ---- folders


def read_config(path):
    """Return the content of a config.json. Raises InputError."""
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a folder that save_pretrained wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({str(error)[:200]}); download it again") from error
    if not isinstance(config, dict):
        raise InputError(f"{path}: not a JSON object; download it again")
    return config


def find_weight_files(folder):
    """Return the paths of the files that hold a folder's weights. Raises InputError."""
    for name in WEIGHTS:
        path = folder / name
        if path.is_file():
            parts = read_index(path) if path.suffix == ".json" else [name]
            for part in parts:
                if not (folder / part).is_file():
                    raise InputError(f"{path}: {part} is missing; download it, too")
            return [folder / part for part in parts]
    raise InputError(
        f"{folder}: has no {WEIGHTS[0]} or {WEIGHTS[2]}; give a folder that save_pretrained wrote, "
        "or a file"
    )


def read_index(index):
    """Return the names of the files that an index lists, sorted. Raises InputError."""
    weight_map = read_config(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no weight_map; download it again")
    for name, part in weight_map.items():
        if not isinstance(part, str) or Path(part).name != part:
            raise InputError(
                f"{index}: {name:.80} is in {part!r:.80}, not in a file beside it; download the "
                "index again"
            )
    return sorted(set(weight_map.values()))


def check_exportable(architecture, source):
    """Raise InputError, which names source, for a model that transformers does not support."""
    for is_unsupported, flag in (
        (architecture.backbone == "tiny", "--backbone tiny"),
        (architecture.backbone_norm == "group", "--backbone_norm group"),
        (architecture.pre_norm, "--pre_norm"),
    ):
        if is_unsupported:
            raise InputError(
                f"{source}: was trained with {flag}, which transformers does not support"
            )


def write_folder(folder, state, classes, architecture, eval_size=800, max_size=1333):
    """Write a folder (Path) that transformers' `from_pretrained` loads.

    state: name -> array; classes: id -> name, {} if they have no names; eval_size, max_size: image
    sizes for preprocessing, in pixels. Raises InputError if the folder cannot be written.
    """
    make_folder(folder)
    with atomic_write(folder / WEIGHTS[0]) as file:
        write_safetensors(to_huggingface(state), file)
    preprocessor = {
        "image_processor_type": "DetrImageProcessor",
        "size": {"shortest_edge": eval_size, "longest_edge": max_size},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    config = make_config(architecture, classes)
    for name, content in ((CONFIG, config), (PREPROCESSOR, preprocessor)):
        with atomic_write(folder / name) as file:
            file.write(json.dumps(content, indent=2).encode())
