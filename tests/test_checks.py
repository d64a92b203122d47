"""What a training prints about its images per step. tests/test_arguments.py tests the checks."""

import pytest

from arguments import parse_args
from checks import get_step_size, print_step_size


@pytest.mark.parametrize(
    "flags, processes, size, words",
    [
        ("", 1, 2, "2 images per step (1 process x batch size 2 x 1 accumulated)"),
        ("--batch_size 1", 1, 1, "1 image per step (1 process x batch size 1 x 1 accumulated)"),
        (
            "--batch_size 4 --accum_steps 3",
            2,
            24,
            "24 images per step (2 processes x batch size 4 x 3 accumulated)",
        ),
    ],
)
def test_images_per_step(flags, processes, size, words, monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", str(processes))
    args = parse_args(flags.split())
    assert get_step_size(args) == size
    print_step_size(args)
    assert capsys.readouterr().out == f"{words}; the original trains with 16\n"


@pytest.mark.parametrize(
    "flags, remedy",
    [
        ("", "--accum_steps 8"),
        ("--batch_size 3", "--accum_steps 6"),
        ("--accum_steps 8", None),
        ("--finetune weights.pth", None),
        ("--resume checkpoint.pkl", None),
        ("--overfit 8", None),
        ("--dataset_file shapes", None),
    ],
)
def test_few_images_per_step_from_scratch_are_a_warning(flags, remedy, capsys):
    print_step_size(parse_args(flags.split()))
    err = capsys.readouterr().err
    assert ("too few images per step to train from scratch" in err) == (remedy is not None)
    assert remedy is None or f"use {remedy}, or start from trained weights" in err
