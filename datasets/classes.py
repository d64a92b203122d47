"""Get the number and names of each dataset's classes."""

from collections import Counter

import numpy as np

from datasets.annotations import RENUMBER
from util.errors import InputError

# Highest category id + 1 of each dataset: labels are the dataset's category ids, never remapped.
NUM_CLASSES = {"coco": 91, "coco_panoptic": 250, "shapes": 4}
# Limit for custom data, where the highest category id determines the number of classes.
MAX_CLASSES = 10_000


def get_num_classes(args):
    """Return the number of classes from the flags (highest category id + 1).

    Return None for custom data without --num_classes; the annotations determine it.
    """
    if args.num_classes is not None:
        return args.num_classes
    return None if args.train_ann or args.val_ann else NUM_CLASSES[args.dataset_file]


def merge_classes(*datasets):
    """Merge the classes of several datasets into one dictionary {category id: name}.

    Raises InputError if the same id has different names, or the same name has different ids.
    """
    classes = {}
    for dataset in datasets:
        check_class_names(
            dataset.classes,
            dataset.ann_file,
            classes,
            datasets[0].ann_file,
            remedy="give it the same name in both, else another id",
        )
        classes.update(dataset.classes)
    for name, count in Counter(classes.values()).items():
        if count > 1:
            check_ids_of_name(name, datasets)
    return dict(sorted(classes.items()))


def check_ids_of_name(name, datasets):
    """Raise InputError if two datasets use different ids for a class; warn if one uses several.

    Exporters may list a class twice, and use one of the ids.
    """
    used = {}
    for dataset in datasets:
        ids = {class_id for class_id, other in dataset.classes.items() if other == name}
        if ids := ids & set(np.unique(dataset.list_boxes()[1]).tolist()):
            used[dataset.ann_file] = ids
    if len(set.union(set(), *used.values())) < 2:
        return
    said = ", ".join(f"{sorted(ids)} in {ann_file}" for ann_file, ids in used.items())
    if not set.intersection(*used.values()):
        raise InputError(
            f"the class '{name}' has other ids in each file, {said}; give all classes the same ids "
            "with python -m datasets.convert renumber"
        )
    print(f"warning: the class '{name}' has several ids, {said}, and is trained as several classes")


def check_class_names(classes, source, other_classes, other_source, remedy):
    """Raise InputError if two dictionaries category id -> name disagree about the name of an id.

    source, other_source, remedy: for the message, the files that the classes come from, and what to
    do if it is the same class, else what to do.
    """
    common = sorted(classes.keys() & other_classes.keys())
    different = [class_id for class_id in common if classes[class_id] != other_classes[class_id]]
    if different:
        more = f" (and {len(different) - 1} more differ)" if len(different) > 1 else ""
        raise InputError(
            f"{source}: class {different[0]} is '{classes[different[0]]}', but "
            f"'{other_classes[different[0]]}' in {other_source}{more}; if it is the same class, "
            f"{remedy}"
        )


def find_num_classes(*datasets):
    """Return the highest category id + 1. Raises InputError if it is not in 1..MAX_CLASSES."""
    highest, source = max((max(each.classes, default=-1), each.ann_file) for each in datasets)
    if not 0 <= highest < MAX_CLASSES:
        raise InputError(
            f"{source}: the highest category id is {highest}, but has to be in "
            f"0..{MAX_CLASSES - 1}; {RENUMBER}"
        )
    return highest + 1
