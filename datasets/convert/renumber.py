"""Renumber the ids of COCO annotation files: UUIDs, other text, or numbers in the millions."""

from pathlib import Path

from datasets.annotations import abbreviate, get_class_names, read_annotation_file
from datasets.classes import MAX_CLASSES
from util.errors import InputError

from .coco_json import check_not_existing, write_json


def renumber_coco(sources: list[Path], out: Path) -> list[Path]:
    """Write OUT/NAME.json with new ids for each NAME.json of sources; return the paths.

    Images and annotations get ids from 1 in each file. All files share the category ids: those that
    they have if these are integers of 0 to 9999 and every class has the same one in all files; else
    from 1, in the order of the old ids if all are integers, or else of the files. Text such as "17"
    is the same id as the number. Raises InputError if an id of an image or category is missing or
    duplicate, an annotation refers to none, or an output exists.
    """
    paths = [out / source.name for source in sources]
    if len(set(paths)) < len(paths):
        raise InputError(f"{out}: two sources would be the same file there; rename one")
    check_not_existing(paths)
    contents = [read_annotation_file(source) for source in sources]
    names = [index_names(data, source) for data, source in zip(contents, sources)]
    new_ids = choose_category_ids(names, sources)
    renumbered = [
        renumber(data, class_names, new_ids, source)
        for data, class_names, source in zip(contents, names, sources)
    ]
    for path, data in zip(paths, renumbered):
        write_json(path, data)
        sizes = [f"{len(data[key])} {key}" for key in ("images", "annotations", "categories")]
        print(f"{path}: {', '.join(sizes)}")
    return paths


def get_key(value):
    """Return an id as int if it is an integer, also as text such as "17"; or else unchanged."""
    if isinstance(value, str) and value.removeprefix("-").isdecimal() and str(int(value)) == value:
        return int(value)
    return value


def index_entries(entries, kind, source):
    """Return a dictionary id -> entry. Raises InputError if an id is missing or duplicate."""
    index = {}
    for entry in entries:
        key = get_key(entry.get("id"))
        if type(key) not in (int, str):
            raise InputError(
                f"{source}: {kind} id {abbreviate(key)} is neither an integer nor text; correct it"
            )
        if key in index:
            raise InputError(
                f"{source}: duplicate {kind} id {abbreviate(key)}, so that it is not clear which "
                "one annotations refer to; correct or remove one"
            )
        index[key] = entry
    return index


def index_names(data, source):
    """Return a dictionary category id -> class name. Raises InputError as `index_entries` does."""
    index = index_entries(data["categories"], "category", source)
    return {get_key(class_id): name for class_id, name in get_class_names(index.values()).items()}


def choose_category_ids(names, sources):
    """Return a dictionary class name -> new id. names: a dictionary old id -> name for each file.

    Raises InputError if a file has two classes of one name.
    """
    pairs = {}  # (old id, name), ordered
    for class_names, source in zip(names, sources):
        ids = {}
        for class_id, name in class_names.items():
            if name in ids:
                raise InputError(
                    f"{source}: categories {abbreviate(ids[name])} and {abbreviate(class_id)} are "
                    f"both named {abbreviate(name)}; rename one"
                )
            ids[name] = class_id
            pairs[class_id, name] = None
    old_ids, all_names = {class_id for class_id, _ in pairs}, {name for _, name in pairs}
    if all(type(class_id) is int for class_id in old_ids):
        is_consistent = len(pairs) == len(old_ids) == len(all_names)
        if is_consistent and all(0 <= class_id < MAX_CLASSES for class_id in old_ids):
            return {name: class_id for class_id, name in pairs}
        pairs = sorted(pairs)
    ordered = dict.fromkeys(name for _, name in pairs)
    return {name: new_id for new_id, name in enumerate(ordered, 1)}


def renumber(data, class_names, new_ids, source):
    """Return the content of an annotation file with new ids.

    class_names: old category id -> name; new_ids: name -> new category id; source: for messages.
    """
    images = index_entries(data["images"], "image", source)
    image_ids = {key: new_id for new_id, key in enumerate(images, 1)}
    category_ids = {key: new_ids[name] for key, name in class_names.items()}
    annotations = []
    for new_id, ann in enumerate(data["annotations"], 1):
        new = {"id": new_id}
        for field, ids in (("image_id", image_ids), ("category_id", category_ids)):
            key = get_key(ann.get(field))
            if type(key) not in (int, str) or key not in ids:
                raise InputError(
                    f"{source}: annotation {abbreviate(ann.get('id'))}: {field} "
                    f"{abbreviate(key)} is not listed; add it, or remove the annotation"
                )
            new[field] = ids[key]
        annotations.append({**ann, **new})
    return {
        **data,
        "images": [{**image, "id": image_ids[key]} for key, image in images.items()],
        "annotations": annotations,
        "categories": [
            {**category, "id": category_ids[get_key(category["id"])]}
            for category in data["categories"]
        ],
    }
