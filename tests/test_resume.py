"""Stopping in the middle of an epoch and going on: the same bits as without it; and whose folder it
is.
"""

import json
import os
import signal
import subprocess
import sys

import pytest
import tiny
from interrupt import assert_same_training
from processes import REPO

import datasets.loader
from arguments import parse_args
from main import main
from models.weights.checkpoint import load_checkpoint
from util.errors import InputError
from util.files import PARTIAL
from util.jittor_file import write_jittor_file


def run(coco, output, *flags):
    tiny.train(
        "--epochs 2 --batch_size 1 --num_workers 0",
        "--coco_path",
        coco,
        "--output_dir",
        output,
        *flags,
    )


@pytest.fixture(scope="module")
def whole(coco, tmp_path_factory):
    """The output folder of a training of two epochs of three batches, validated on four."""
    folder = tmp_path_factory.mktemp("whole")
    run(coco, folder)
    return folder


@pytest.fixture
def loading(monkeypatch):
    """loading(n, number): sends this process the signal `number` while it loads its n-th batch, or
    fails if that is None. Counts batches.
    """

    def install(n, number):
        batches, load_batch = [], datasets.loader.load_batch

        def counting(dataset, indices):
            batches.append(indices)
            if len(batches) == n and number is None:
                raise InputError("photo.jpg: broken")
            if len(batches) == n:
                os.kill(os.getpid(), number)
            return load_batch(dataset, indices)

        monkeypatch.setattr(datasets.loader, "load_batch", counting)
        return batches

    return install


# 2: in the first epoch; 5: in its validation; 9: in the second epoch; 11: in the last validation
@pytest.mark.parametrize("n, epoch, step", [(2, -1, 2), (5, 0, 0), (9, 0, 2), (11, 1, 0)])
def test_a_signal_stops_after_the_step_and_resuming_gives_the_same_bits(
    coco, whole, tmp_path, loading, capfd, n, epoch, step
):
    loading(n, signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        run(coco, tmp_path)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert f"--resume {tmp_path}/checkpoint.pkl" in capfd.readouterr().err.splitlines()[-1]
    checkpoint = load_checkpoint(tmp_path / "checkpoint.pkl")
    assert (checkpoint["epoch"], checkpoint["step"]) == (epoch, step)
    again = loading(0, None)
    run(coco, tmp_path, "--resume", tmp_path / "checkpoint.pkl")
    assert_same_training(tmp_path, whole)
    trained = 3 * (epoch + 1) + step
    validated = 4 * len([line for line in range(2) if line >= (epoch if step == 0 else epoch + 1)])
    assert len(again) == 6 - trained + validated, "what was used is not even loaded again"


# 2, 9: within an epoch; 8: at its start; 11: in the last validation
@pytest.mark.parametrize("n, epoch, step", [(2, -1, 1), (8, 0, 0), (9, 0, 1), (11, 1, 0)])
def test_an_unreadable_image_loses_nothing(coco, whole, tmp_path, loading, n, epoch, step):
    checkpoint = tmp_path / "checkpoint.pkl"
    loading(n, None)
    message = f"^photo.jpg: broken; .*resume with python main.py .* --resume {checkpoint}"
    with pytest.raises(InputError, match=message):
        run(coco, tmp_path)
    loading(0, None)
    saved = load_checkpoint(checkpoint)
    assert (saved["epoch"], saved["step"]) == (epoch, step)
    run(coco, tmp_path, "--resume", checkpoint)
    assert_same_training(tmp_path, whole)


def test_another_trainings_lines_of_the_log_do_not_count(coco, whole, tmp_path, loading):
    """It went on from the same checkpoint before, with another rate, and further."""
    first = tmp_path / "checkpoint0000.pkl"
    run(coco, tmp_path, "--epochs", 3)
    run(coco, tmp_path, "--resume", first, "--epochs", 2, "--lr", 1e-3)
    lines = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    # Killed within its evaluation, its checkpoint is newer than the log.
    (tmp_path / "log.txt").write_bytes((whole / "log.txt").read_bytes())
    loaded = loading(0, None)
    run(coco, tmp_path, "--resume", tmp_path / "checkpoint.pkl", "--epochs", 2)
    assert len(loaded) == 4, "it is evaluated, and not trained"
    assert json.loads((tmp_path / "log.txt").read_text().splitlines()[1]) == lines[1]


def test_stopped_before_it_has_saved_it_names_the_checkpoint_that_is_there(
    coco, tmp_path, loading, capfd
):
    """In another folder, in the evaluation that it makes up for."""
    before = tmp_path / "before" / "checkpoint.pkl"
    for resume, output in (([], before.parent), (["--resume", before], tmp_path / "after")):
        loading(5 if not resume else 1, signal.SIGTERM)  # the first validation
        with pytest.raises(SystemExit):
            run(coco, output, *resume)
        last = capfd.readouterr().err.splitlines()[-1]
        assert f"--resume {before}" in last and f"--output_dir {output}" in last
    assert not (tmp_path / "after" / "checkpoint.pkl").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_other_signals(coco, tmp_path, loading, capfd, number):
    before = signal.getsignal(number)
    loading(1, number)
    with pytest.raises(SystemExit) as stopped:
        run(coco, tmp_path)
    assert stopped.value.code == 128 + number
    assert f"stopped by {number.name}: resume with python main.py" in capfd.readouterr().err
    assert signal.getsignal(number) == before


def test_a_second_signal_acts_at_once(coco, tmp_path):
    source = (
        "import os, signal\n"
        "from util.signals import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(stop.received.name, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('alive')"
    )
    done = subprocess.run([sys.executable, "-c", source], cwd=REPO, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "SIGTERM\n")


def test_saving_every_two_steps(coco, whole, tmp_path):
    saved = []

    def remember(state, path, save=write_jittor_file):
        saved.append((path.name, state.get("epoch"), state.get("step")))
        save(state, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("util.output.write_jittor_file", remember)
        run(coco, tmp_path, "--checkpoint_interval", 2)
    assert [entry for entry in saved if entry[0] == "checkpoint.pkl"] == [
        ("checkpoint.pkl", -1, 2),
        ("checkpoint.pkl", 0, 0),
        ("checkpoint.pkl", 0, 2),
        ("checkpoint.pkl", 1, 0),
    ]
    assert_same_training(tmp_path, whole)


@pytest.mark.parametrize(
    "flags, message",
    [(["--batch_size", 2], "--batch_size 1 .now 2."), (["--seed", 48], "--seed 47 .now 48.")],
)
def test_the_middle_of_an_epoch_needs_the_same_flags(coco, tmp_path, loading, flags, message):
    loading(1, signal.SIGTERM)
    with pytest.raises(SystemExit):
        run(coco, tmp_path)
    with pytest.raises(
        InputError, match=f"checkpoint.pkl: was saved within an epoch, with {message}"
    ):
        run(coco, tmp_path, "--resume", tmp_path / "checkpoint.pkl", *flags)


def test_a_rate_that_is_given_wins_in_the_middle_of_an_epoch_too(coco, tmp_path, loading, capsys):
    loading(1, signal.SIGTERM)
    with pytest.raises(SystemExit):
        run(coco, tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint.pkl")["step"] == 1
    resume = ["--resume", tmp_path / "checkpoint.pkl"]
    run(coco, tmp_path, *resume, "--lr", "7e-5", "--epochs", 1, "--lr_drop", 5)
    groups = load_checkpoint(tmp_path / "checkpoint.pkl")["optimizer"]["groups"]
    assert groups[0]["lr"] == 7e-5 != groups[1]["lr"]


def test_flags_that_are_given_win_and_others_come_from_the_checkpoint(coco, tmp_path, capsys):
    flags = (
        "--lr",
        3e-4,
        "--lr_drop",
        4,
        "--clip_max_norm",
        0.5,
        "--weight_decay",
        0.01,
        "--bbox_loss_coef",
        4,
        "--no_aux_loss",
    )
    run(coco, tmp_path / "whole", *flags)
    run(coco, tmp_path / "parts", *flags, "--epochs", 1)
    checkpoint = tmp_path / "parts" / "checkpoint.pkl"
    resume = ["--coco_path", str(coco), "--output_dir", str(checkpoint.parent)]
    resume += ["--resume", str(checkpoint), *"--num_workers 0 --device cpu".split()]
    main(parse_args([*resume, "--epochs", "2"]))
    assert_same_training(tmp_path / "parts", tmp_path / "whole")
    capsys.readouterr()

    main(parse_args([*resume, *"--epochs 4 --lr 1e-6 --lr_drop 1 --weight_decay 0.5".split()]))
    output = capsys.readouterr().out
    for line in (
        "--lr is 1e-06 from now on; {} was trained with 0.0003",
        "--lr_drop is 1 from now on; {} was trained with 4",
        "--weight_decay is 0.5 from now on; {} was trained with 0.01",
        "--epochs is 4 from now on; {} was trained with 2",
    ):
        assert line.format(checkpoint) + "\n" in output
    assert output.count("from now on") == 4
    rates = [
        json.loads(line)["train_lr"]
        for line in (checkpoint.parent / "log.txt").read_text().splitlines()
    ]
    assert rates == pytest.approx([3e-4, 3e-4, 1e-8, 1e-9], rel=1e-6), (
        "two drops are past at the third epoch"
    )
    groups = load_checkpoint(checkpoint)["optimizer"]["groups"]
    assert [group["weight_decay"] for group in groups] == [0.5, 0.5]
    assert [group["lr"] for group in groups] == pytest.approx([1e-10, 1e-9], rel=1e-6), (
        "the backbone's rate stays 1e-5 before drops"
    )


def test_a_training_that_is_complete_says_so(coco, whole, tmp_path, capsys):
    checkpoint = whole / "checkpoint.pkl"
    run(coco, tmp_path, "--resume", checkpoint, "--start_epoch", 0)
    printed = capsys.readouterr().out
    assert "all 2 epochs are trained; --epochs trains more" in printed
    assert f"{checkpoint} determines where training resumes: --start_epoch has no effect" in printed
    assert "training on" not in printed


def test_a_folder_with_a_training_is_not_overwritten(coco, whole, tmp_path):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    with pytest.raises(
        InputError,
        match=f"{whole} holds a training already .* --resume {whole}/checkpoint.pkl.* --overwrite",
    ):
        run(coco, whole)
    for flags in (
        ["--resume", whole / "checkpoint.pkl"],
        ["--finetune", whole / "checkpoint0000.pkl"],
        ["--backbone_weights", whole / "checkpoint.pkl"],
        [
            "--frozen_weights",
            whole / "checkpoint.pkl",
            "--masks",
            "--hidden_dim",
            128,
            "--nheads",
            8,
        ],
    ):
        with pytest.raises(
            InputError,
            match=f"--overwrite would remove {flags[1]}, which {flags[0]} needs: change "
            "--output_dir",
        ):
            run(coco, whole, *flags, "--overwrite")
    assert before == {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}


def test_overwrite_removes_the_training_before(coco, whole, tmp_path):
    (tmp_path / "eval").mkdir()
    for name in (
        "checkpoint.pkl",
        "checkpoint0099.pkl",
        "log.txt",
        "eval/050.pkl",
        "notes.txt",
        f".checkpoint.pkl{PARTIAL}",
    ):
        (tmp_path / name).write_text("old")
    run(coco, tmp_path, "--overwrite")
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {
        str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()
    } | {"notes.txt"}
    assert_same_training(tmp_path, whole)


def test_one_run_at_a_time_in_a_folder(coco, tmp_path):
    source = (
        "import sys; from pathlib import Path; from util.files import lock_output_folder; "
        "lock_output_folder(Path(sys.argv[1])); print(flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", source, tmp_path],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match=f"--output_dir {tmp_path} is in use by another run"):
            run(coco, tmp_path)
        other.communicate(b"\n")
    (tmp_path / "eval").mkdir()
    (tmp_path / "photos").mkdir()
    own = {tmp_path / f".log.txt{PARTIAL}", tmp_path / "eval" / f".latest.pkl{PARTIAL}"}
    foreign = {
        tmp_path / ".other.part",
        tmp_path / "eval" / ".other.part",
        tmp_path / "photos" / f".other{PARTIAL}",
    }
    for path in own | foreign:
        path.touch()
    with pytest.raises(InputError, match="no such folder"):
        run(tmp_path / "nothing", tmp_path)
    assert set(tmp_path.rglob(".*")) == foreign | {tmp_path / ".lock"}, (
        "what this program left is removed, and nothing else"
    )


def test_a_damaged_checkpoint_names_the_newest_intact_one(tmp_path):
    for number, name in enumerate(
        ("checkpoint0001.pkl", "checkpoint0002.pkl", "checkpoint0003.pkl", "checkpoint.pkl")
    ):
        write_jittor_file({"model": {}}, tmp_path / name)
        os.utime(tmp_path / name, (number, number))
    for name in ("checkpoint.pkl", "checkpoint0003.pkl"):
        content = bytearray((tmp_path / name).read_bytes())
        content[5] ^= 1
        (tmp_path / name).write_bytes(content)
    with pytest.raises(
        InputError,
        match=r"checkpoint.pkl: the file is damaged .*, or take "
        r".*/checkpoint0002.pkl, the newest intact",
    ):
        load_checkpoint(tmp_path / "checkpoint.pkl")


@pytest.mark.soak
@pytest.mark.parametrize("name", ["KILL", "TERM"])
def test_interrupted_trainings_end_as_the_undisturbed_one(name):
    # in a process of its own, since Jittor ends one whose child is killed
    done = subprocess.run(
        [sys.executable, "-m", "tests.tools.interrupt", "--times", "2", "--signal", name],
        cwd=REPO,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
    )
    assert done.returncode == 0 and f"2 x SIG{name}" in done.stdout, done.stdout
