"""Several processes under mpirun: the steps they take, what they count, how a job ends, and
resuming with another number.
"""

import json
import os
import re
import signal
import subprocess
import time

import numpy as np
import pytest
from interrupt import FLAGS, assert_same_training
from processes import ENVIRONMENT, finish, mpirun, part

from models.weights.checkpoint import load_checkpoint


@pytest.mark.parametrize("processes", [2, 3])
def test_messages(processes, tmp_path):
    assert part("messages", processes, tmp_path / "out.npz")["processes"] == processes


@pytest.mark.parametrize(
    "processes, batch_size, steps", [pytest.param(2, 2, 20, marks=pytest.mark.soak), (4, 1, 3)]
)
def test_steps_are_those_of_the_definition(processes, batch_size, steps, tmp_path):
    """The mean over the processes of each one's loss, with the mean number of boxes; one process
    has no object at all.

    And one process that takes as many batches for a step takes the same steps.
    """
    flags = ("--batch_size", batch_size, "--steps", steps)
    found = part("train", processes, tmp_path / "found.npz", *flags)
    expected = part("alone", 1, tmp_path / "expected.npz", *flags, "--processes", processes)
    check_steps(found, expected)
    if processes == 4:
        one = part("train", 1, tmp_path / "one.npz", *flags, "--accum_steps", processes)
        check_steps(one, expected)
        check_steps(one, found)


def test_a_step_exchanges_three_times():
    """Whether all have samples, with the numbers of boxes; the losses; and who got a signal."""
    code, output = finish(mpirun(2, "-m", "tests.tools.messages", "--measure"))
    assert code == 0 and "\n| 2 | 3 | 2 + 17 + 1 | 320 | " in output, output[-2000:]


def test_the_main_process_saves_without_the_others(tmp_path):
    assert part("save", 2, tmp_path / "out.npz")["weights"] > 100


def check_steps(found, expected):
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-4)
    whole = np.sqrt(
        sum(np.square(value).sum() for name, value in expected.items() if name.startswith("grad/"))
    )
    for name, value in expected.items():
        if name != "losses":
            # Rounding errors of the whole computation are in a gradient that is a
            # hundred-thousandth of the whole.
            size = max(np.linalg.norm(value), 1e-5 * whole if name.startswith("grad/") else 0)
            assert np.linalg.norm(found[name] - value) <= 1e-5 * size, name
    norms = {
        name: np.linalg.norm(value) for name, value in expected.items() if name.startswith("grad/")
    }
    print(
        "gradients, relative L2:",
        max(
            np.linalg.norm(found[name] - expected[name]) / max(norm, 1e-5 * whole)
            for name, norm in norms.items()
        ),
    )


def train(folder, shapes, processes, *flags):
    """A small training of shapes in a folder, or the rest of it."""
    checkpoint = folder / "checkpoint.pkl"
    resume = ["--resume", checkpoint] if checkpoint.exists() else []
    return mpirun(
        processes, "main.py", *FLAGS, "--coco_path", shapes, "--output_dir", folder, *resume, *flags
    )


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return tmp_path_factory.mktemp("data") / "shapes"


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """(output folder, output) of a whole training of two processes."""
    folder = tmp_path_factory.mktemp("trained")
    code, output = finish(train(folder, shapes, 2))
    assert code == 0, output[-2000:]
    return folder, output


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def test_a_training_of_two_processes(trained):
    folder, output = trained
    assert len(log_of(folder)) == 4 and load_checkpoint(folder / "checkpoint.pkl")["processes"] == 2
    assert "device of each of 2 processes: cpu" in output
    assert output.count("Averaged stats:") == 8 and output.count("[0/6]") == 4, (
        "only the main process prints, 48 / 2 / 4 steps"
    )
    assert all(np.isfinite(line["train_loss"]) for line in log_of(folder))


@pytest.mark.parametrize("batch_size", [1, pytest.param(7, marks=pytest.mark.soak)])
def test_evaluation_counts_every_image_once(trained, shapes, tmp_path, batch_size):
    """Six images, with any number of processes the same detections and figures to the last bit;
    some go without a batch.
    """
    seen = []
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        code, output = finish(
            mpirun(
                processes,
                "main.py",
                *FLAGS,
                "--coco_path",
                shapes,
                "--output_dir",
                folder,
                "--eval",
                "--resume",
                trained[0] / "checkpoint.pkl",
                "--batch_size",
                batch_size,
            )
        )
        assert code == 0, output[-2000:]
        detections = json.loads((folder / "detections_bbox.json").read_text())
        assert len(detections) == 6 * 8 and {each["image_id"] for each in detections} == set(
            range(1, 7)
        )
        seen.append((detections, re.findall(r"^ Average .*", output, re.M)))
    assert len(seen[0][1]) == 12 and seen[1] == seen[0] and seen[2] == seen[0]


def stop_within(process, folder, number, victim):
    """Waits for the first checkpoint, sends a signal to victim(pid of mpirun), and returns (exit
    code, output, seconds).
    """
    deadline = time.time() + 300
    while not (folder / "checkpoint.pkl").exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    os.kill(victim(process.pid), number)
    begin = time.time()
    code, output = finish(process)
    return code, output, time.time() - begin


def second_process(mpirun_pid):
    children = subprocess.run(
        ["pgrep", "-P", str(mpirun_pid), "-f", "main.py"], capture_output=True, text=True
    ).stdout.split()
    return max(map(int, children))


@pytest.mark.parametrize(
    "number, victim",
    [
        (signal.SIGKILL, second_process),
        pytest.param(signal.SIGSEGV, second_process, marks=pytest.mark.soak),
        pytest.param(signal.SIGINT, lambda pid: pid, marks=pytest.mark.soak),
    ],
)
def test_a_killed_process_ends_the_job_and_the_checkpoint_resumes(
    trained, shapes, tmp_path, number, victim
):
    code, output, seconds = stop_within(train(tmp_path, shapes, 2), tmp_path, number, victim)
    assert code != 0 and seconds < 20, output[-2000:]
    print(f"the job ended {seconds:.1f} s after {number.name}")
    code, output = finish(train(tmp_path, shapes, 2))
    assert code == 0, output[-2000:]
    assert_same_training(tmp_path, trained[0])


def test_slurms_warning_stops_all_after_the_same_step(trained, shapes, tmp_path):
    """mpirun passes SIGUSR1 on to every process."""
    code, output, _ = stop_within(
        train(tmp_path, shapes, 2), tmp_path, signal.SIGUSR1, lambda pid: pid
    )
    assert code == 128 + signal.SIGUSR1, output[-2000:]
    assert output.count("stopped by SIGUSR1: go on with mpirun -np 2 --bind-to none ") == 1
    assert output.count("--allow-run-as-root") == (os.geteuid() == 0)
    code, output = finish(train(tmp_path, shapes, 2))
    assert code == 0, output[-2000:]
    assert_same_training(tmp_path, trained[0])


def test_another_number_of_processes_goes_on_and_says_so(shapes, tmp_path):
    code, _, _ = stop_within(train(tmp_path, shapes, 2), tmp_path, signal.SIGUSR1, lambda pid: pid)
    before = load_checkpoint(tmp_path / "checkpoint.pkl")
    code, output = finish(train(tmp_path, shapes, 1))
    assert code == 0, output[-2000:]
    assert (
        "was saved by a training of 2 processes and goes on with 1: a step now takes 4 images"
        in output
    )
    if before["step"]:
        assert f"from step {2 * before['step']}" in output
    assert [line["epoch"] for line in log_of(tmp_path)] == [0, 1, 2, 3]


def test_a_fault_of_one_process_ends_the_job_with_its_error(trained, shapes, tmp_path):
    source = (
        "from util import dist, launch\nfrom util.errors import InputError\n"
        "with launch.job():\n"
        "    if launch.get_rank() == 1:\n"
        "        raise {}\n"
        "    dist.barrier()\n"
        "    dist.barrier()"
    )
    for fault, message in (
        ("InputError('photo.jpg: broken')", "process 1: error: photo.jpg: broken\n"),
        ("ZeroDivisionError('one')", "ZeroDivisionError: one\n"),
    ):
        code, output = finish(mpirun(2, "-c", source.format(fault)), 60)
        assert code == 1 and output.count(message) == 1, output


def test_jittor_without_mpi_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(ENVIRONMENT, "use_mpi", "0")
    code, output = finish(mpirun(2, "main.py", *FLAGS, "--coco_path", tmp_path / "shapes"), 120)
    assert (
        code == 1
        and output.count("error: mpirun started several processes, but Jittor has no MPI") == 1
    ), output


def test_a_fault_of_all_is_said_once(tmp_path):
    code, output = finish(
        mpirun(2, "main.py", "--coco_path", tmp_path / "none", "--backbone_weights", "none"), 120
    )
    assert code == 1 and output.count("error:") == 1 and "no such folder" in output, output
