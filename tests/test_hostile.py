"""Hostile checkpoints: refused in one line, with little time and memory."""

import os
import tempfile
import time
from pathlib import Path

import hostile
import pytest
from hostile_files import files, special

from models.weights.checkpoint import load_checkpoint
from models.weights.training import check_training_state
from util.errors import InputError

MARK = Path(tempfile.gettempdir()) / f"mark-{os.getpid()}"  # a file that is executed makes this one
KINDS = files(MARK)


@pytest.mark.parametrize("kind", KINDS)
def test_each_hostile_file_is_refused_in_one_line(kind, tmp_path):
    path = tmp_path / "file"
    for name, content in KINDS[kind].items():
        path.write_bytes(content)
        start = time.time()
        with pytest.raises(InputError) as error:
            load_checkpoint(path)
        assert str(error.value).isprintable() and str(path) in str(error.value), name
        assert not MARK.exists() and time.time() - start < 10, name


@pytest.mark.parametrize("kind", [*KINDS, "no file to read"])
def test_the_program_ends_with_one_line_and_little_memory(kind, tmp_path):
    if kind in KINDS:
        path = tmp_path / "file"
        path.write_bytes(next(iter(KINDS[kind].values())))
        paths = [path]
    else:
        paths = special(tmp_path).values()
    for path in paths:
        code, output, seconds, memory = hostile.read(path, tmp_path)
        assert code == 1 and output.startswith("error: "), output
        assert output.rstrip("\n").isprintable(), output
        assert seconds < 10 and memory < 1 and not MARK.exists()


TRAINING = {
    "model": {},
    "epoch": 0,
    "step": 2,
    "images": 8,
    "processes": 1,
    "args": {"batch_size": 2, "accum_steps": 1, "seed": 1},
    "meters": {},
    "lr_scheduler": {"step_size": 2, "gamma": 0.1, "last_epoch": 0},
    "optimizer": {
        "state": {},
        "groups": [{"names": ["a"], "lr": 1e-4, "weight_decay": 0, "betas": (0, 1), "eps": 1e-8}],
    },
}


@pytest.mark.parametrize(
    "key, value",
    [
        ("epoch", "0"),
        ("step", None),
        ("images", 1.5),
        ("processes", "1"),
        ("args", []),
        ("args", {"batch_size": 2}),
        ("meters", {"loss": 3}),
        ("lr_scheduler", {}),
        ("optimizer", {"state": {"a": {}}, "groups": []}),
        ("optimizer", {"state": [], "groups": [{}]}),
    ],
)
def test_a_damaged_training_state_is_an_input_error(key, value):
    check_training_state(TRAINING, "good.pkl")
    with pytest.raises(InputError, match=f"bad.pkl: its training state is damaged.*{key}"):
        check_training_state({**TRAINING, key: value}, "bad.pkl")
