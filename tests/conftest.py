"""Fixtures, and the selection of tests."""

import os
from pathlib import Path

os.environ["nvcc_path"] = ""  # use the CPU; `python -m tests.cuda` tests the GPU

import pytest  # noqa: E402
import tiny  # noqa: E402

REPO = Path(__file__).resolve().parents[1]
COCO = Path(os.environ.get("DETR_TEST_COCO", REPO.parent / "shared" / "data" / "coco_tiny"))


@pytest.fixture(scope="session")
def coco_path():
    """Return a folder of real COCO images in COCO's layout."""
    return COCO


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Return a folder of images in COCO's layout for small trainings, see `tiny.make_coco`."""
    return tiny.make_coco(tmp_path_factory.mktemp("coco"))


def pytest_xdist_auto_num_workers(config):
    """Run one file's tests in this process, to debug them, and others in up to four processes."""
    is_one_file = len(config.args) == 1 and ".py" in config.args[0]
    return 0 if is_one_file else min(os.cpu_count(), 4)


def pytest_collection_modifyitems(config, items):
    if COCO.is_dir():
        return
    deselected = [item for item in items if item.get_closest_marker("coco")]
    items[:] = [item for item in items if item not in deselected]
    config.hook.pytest_deselected(items=deselected)
