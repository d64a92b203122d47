"""Build datasets by name, like the original's `datasets/__init__.py`. Must not import Jittor."""

from argparse import Namespace

from pycocotools.coco import COCO

from . import coco, coco_panoptic, shapes
from .faults import Faults

BUILDERS = {"coco": coco.build, "coco_panoptic": coco_panoptic.build, "shapes": shapes.build}


def build_dataset(
    image_set: str, args: Namespace, faults: Faults | None = None
) -> coco.CocoDataset:
    """Build the dataset that `args.dataset_file` names.

    image_set: one of `coco.SPLITS`; args: the parsed flags; faults: collects faults, by default as
    `args.skip_bad_samples` says. Raises InputError if the dataset's files are missing or invalid,
    and ValueError for an unknown dataset.
    """
    if args.dataset_file not in BUILDERS:
        known = ", ".join(BUILDERS)
        raise ValueError(f"dataset_file is {args.dataset_file}: give one of {known}")
    return BUILDERS[args.dataset_file](image_set, args, faults or Faults(args.skip_bad_samples))


def get_coco_api_from_dataset(dataset: coco.CocoDataset) -> COCO:
    """Return the dataset's ground truth as a `pycocotools.coco.COCO` object."""
    return dataset.coco
