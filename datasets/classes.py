"""The classes of data sets: category id -> name."""

from util.errors import InputError

# Highest category id + 1 of each data set: the class ids are the data set's own, never remapped.
NUM_CLASSES = {"coco": 91, "coco_panoptic": 250, "shapes": 4}
# The most classes of the user's own data, whose highest category id decides their number.
MAX_CLASSES = 10_000


def get_num_classes(args):
    """The number of classes that the flags decide: highest category id + 1.

    None for the user's own data, whose annotations decide it.
    """
    if args.num_classes is not None:
        return args.num_classes
    return None if args.train_ann or args.val_ann else NUM_CLASSES[args.dataset_file]


def get_classes(*datasets):
    """The classes of data sets that belong together, a dictionary category id -> name.

    Raises:
        InputError: they call the same id by different names.
    """
    classes = {}
    for dataset in datasets:
        check_names(dataset.classes, dataset.ann_file, classes, datasets[0].ann_file)
        classes.update(dataset.classes)
    return dict(sorted(classes.items()))


def check_names(classes, source, others, other_source):
    """Raises InputError where two dictionaries id -> name call an id by different names.

    source, other_source: where each is from.
    """
    for class_id in classes.keys() & others.keys():
        if classes[class_id] != others[class_id]:
            raise InputError(
                f"{source}: class {class_id} is '{classes[class_id]}' there and "
                f"'{others[class_id]}' in {other_source}; give the same classes the same ids"
            )


def num_classes_from_ids(classes, source):
    """Highest id + 1 of a dictionary category id -> name.

    Raises InputError, which names source, where that is no possible number.
    """
    highest = max(classes, default=-1)
    if not 0 <= highest < MAX_CLASSES:
        raise InputError(
            f"{source}: its highest category id is {highest}, where the number of classes, which "
            f"is that id + 1, should be 1 to {MAX_CLASSES}; renumber the categories"
        )
    return highest + 1
