"""Get the number and names of each dataset's classes."""

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

    Raises InputError if the same id has different names.
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
    return dict(sorted(classes.items()))


def check_class_names(classes, source, other_classes, other_source, remedy):
    """Raise InputError if two dictionaries category id -> name disagree about the name of an id.

    source, other_source, remedy: for the message, the files that the classes come from, and what to
    do if it is the same class, else what to do.
    """
    for class_id in classes.keys() & other_classes.keys():
        if classes[class_id] != other_classes[class_id]:
            raise InputError(
                f"{source}: class {class_id} is '{classes[class_id]}', but "
                f"'{other_classes[class_id]}' in {other_source}; if it is the same class, {remedy}"
            )


def find_num_classes(classes, source):
    """Return the highest category id + 1.

    Raises InputError if it is not in 1..MAX_CLASSES. source: file named in the message.
    """
    highest = max(classes, default=-1)
    if not 0 <= highest < MAX_CLASSES:
        raise InputError(
            f"{source}: the highest category id is {highest}, but has to be in "
            f"0..{MAX_CLASSES - 1}; renumber the ids with python -m datasets.convert renumber"
        )
    return highest + 1
