"""Fixtures of all tests."""

import os
from pathlib import Path

os.environ["nvcc_path"] = (
    ""  # on the CPU, also where there is a GPU: `python -m tests.cuda` is for that
)

import pytest  # noqa: E402
import tiny  # noqa: E402

REPO = Path(__file__).resolve().parents[1]
COCO = Path(os.environ.get("DETR_TEST_COCO", REPO.parent / "shared" / "data" / "coco_tiny"))


@pytest.fixture(scope="session")
def coco_path():
    """A folder of real COCO images in COCO's layout."""
    return COCO


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """A folder of three training and four validation images, small enough for tests that train (see
    `tiny.make_coco`).
    """
    return tiny.make_coco(tmp_path_factory.mktemp("coco"))


def pytest_xdist_auto_num_workers(config):
    """How many processes run the tests: none of its own for one file, where one looks closely."""
    one_file = len(config.args) == 1 and ".py" in config.args[0]
    return 0 if one_file else min(os.cpu_count(), 4)


def pytest_collection_modifyitems(config, items):
    if COCO.is_dir():
        return
    without = [item for item in items if item.get_closest_marker("coco")]
    items[:] = [item for item in items if item not in without]
    config.hook.pytest_deselected(items=without)
