"""Several processes under mpirun and Slurm: training, evaluation, how a job ends, and resuming."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from interrupt import FLAGS, assert_same_training
from processes import ENVIRONMENT, REPO, finish, run_mpi, run_part, run_python, start_mpi

from models.weights.checkpoint import load_checkpoint

HOST = platform.node()


@pytest.mark.parametrize("processes", [2, 3])
def test_collectives(processes, tmp_path):
    assert run_part("messages", processes, tmp_path / "out.npz")["processes"] == processes


@pytest.mark.parametrize(
    "processes, batch_size, steps", [pytest.param(2, 2, 20, marks=pytest.mark.soak), (4, 1, 3)]
)
def test_training_steps_match_their_definition(processes, batch_size, steps, tmp_path):
    """One process has no objects at all. Gradient accumulation in one process takes equal steps."""
    flags = ("--batch_size", batch_size, "--steps", steps)
    found = run_part("train", processes, tmp_path / "found.npz", *flags)
    expected = run_part("alone", 1, tmp_path / "expected.npz", *flags, "--processes", processes)
    check_steps(found, expected)
    if processes == 4:
        one = run_part("train", 1, tmp_path / "one.npz", *flags, "--accum_steps", processes)
        check_steps(one, expected)
        check_steps(one, found)


def check_steps(found, expected):
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-4)
    gradients = [name for name in expected if name.startswith("grad/")]
    norm = np.sqrt(sum(np.square(expected[name]).sum() for name in gradients))
    for name in expected.keys() - {"losses"}:
        # A gradient of a hundred-thousandth of the norm holds only rounding errors.
        size = max(np.linalg.norm(expected[name]), 1e-5 * norm if name in gradients else 0)
        assert np.linalg.norm(found[name] - expected[name]) <= 1e-5 * size, name


def test_a_step_has_three_collectives():
    """Samples and numbers of boxes; the losses; and signals."""
    output = run_mpi(2, "-m", "tests.tools.messages", "--measure")
    assert "| 2 | 3 | 2 + 17 + 1 | 320 | " in output, output[-2000:]


def test_the_main_process_saves_without_the_others(tmp_path):
    assert run_part("save", 2, tmp_path / "out.npz")["weights"] > 100


def get_command(folder, shapes):
    """Return the command of a small training in folder, which resumes if it can."""
    checkpoint = folder / "checkpoint.pkl"
    resume = ["--resume", checkpoint] if checkpoint.exists() else []
    return ["main.py", *FLAGS, "--coco_path", shapes, "--output_dir", folder, *resume]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return tmp_path_factory.mktemp("data") / "shapes"


@pytest.fixture(scope="module")
def trained(shapes, tmp_path_factory):
    """Train with two processes; return (output folder, output)."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, run_mpi(2, *get_command(folder, shapes))


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def test_a_training_of_two_processes(trained):
    folder, output = trained
    log = read_log(folder)
    assert len(log) == 4 and all(np.isfinite(line["train_loss"]) for line in log)
    assert load_checkpoint(folder / "checkpoint.pkl")["processes"] == 2
    assert "device of each of 2 processes: cpu" in output
    # Only the main process prints; an epoch has 48 / 2 / 4 steps.
    assert output.count("Averaged stats:") == 8 and output.count("[0/6]") == 4


@pytest.mark.parametrize("batch_size", [1, pytest.param(7, marks=pytest.mark.soak)])
def test_evaluation_does_not_depend_on_the_number_of_processes(
    trained, shapes, tmp_path, batch_size
):
    """Six images: some processes have no batch, and none is counted twice."""
    results = []
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        flags = ["--eval", "--resume", trained[0] / "checkpoint.pkl", "--batch_size", batch_size]
        output = run_mpi(processes, *get_command(folder, shapes), *flags)
        detections = json.loads((folder / "detections_bbox.json").read_text())
        assert len(detections) == 6 * 8
        assert {each["image_id"] for each in detections} == set(range(1, 7))
        results.append((detections, re.findall(r"^ Average .*", output, re.M)))
    assert len(results[0][1]) == 12 and results[1] == results[0] and results[2] == results[0]


def get_mpirun(pid):
    return pid


def get_second_process(mpirun_pid):
    command = ["pgrep", "-P", str(mpirun_pid), "-f", "main.py"]
    pids = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return max(map(int, pids))


def wait_for_file(process, path):
    """Wait until a running process has written a file."""
    deadline = time.time() + 300
    while not path.exists():
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)


def stop_training(folder, shapes, number, get_victim):
    """Train with two processes, and send a signal after the first checkpoint.

    get_victim: function of mpirun's process id. Returns (exit code, output, seconds until the end).
    """
    process = start_mpi(2, *get_command(folder, shapes))
    wait_for_file(process, folder / "checkpoint.pkl")
    os.kill(get_victim(process.pid), number)
    begin = time.time()
    code, output = finish(process)
    return code, output, time.time() - begin


@pytest.mark.parametrize(
    "number, get_victim",
    [
        (signal.SIGKILL, get_second_process),
        pytest.param(signal.SIGSEGV, get_second_process, marks=pytest.mark.soak),
        pytest.param(signal.SIGINT, get_mpirun, marks=pytest.mark.soak),
    ],
)
def test_a_killed_process_ends_the_job_and_its_checkpoint_resumes(
    trained, shapes, tmp_path, number, get_victim
):
    code, output, seconds = stop_training(tmp_path, shapes, number, get_victim)
    assert code != 0 and seconds < 20, output[-2000:]
    print(f"the job ended {seconds:.1f} s after {number.name}")
    run_mpi(2, *get_command(tmp_path, shapes))
    assert_same_training(tmp_path, trained[0])


def test_sigusr1_to_mpirun_stops_all_processes_after_the_same_step(trained, shapes, tmp_path):
    """mpirun forwards Slurm's warning."""
    code, output, _ = stop_training(tmp_path, shapes, signal.SIGUSR1, get_mpirun)
    assert code == 128 + signal.SIGUSR1, output[-2000:]
    assert output.count("stopped by SIGUSR1: resume with mpirun -np 2 --bind-to none ") == 1
    assert output.count("--allow-run-as-root") == (os.geteuid() == 0)
    run_mpi(2, *get_command(tmp_path, shapes))
    assert_same_training(tmp_path, trained[0])


def test_an_unreadable_image_of_one_process_stops_all_after_the_same_step(
    trained, shapes, tmp_path
):
    image = shapes / "train2017" / "000000000030.png"
    content = image.read_bytes()
    image.write_bytes(content[:-50])
    code, output = finish(start_mpi(2, *get_command(tmp_path, shapes), "--checkpoint_interval", 0))
    image.write_bytes(content)
    assert code == 1 and output.count(f"error: {image}: cannot be read as an image") == 1, output
    assert "resume with mpirun -np 2 " in output and "Traceback" not in output
    assert load_checkpoint(tmp_path / "checkpoint.pkl")["step"] > 0
    run_mpi(2, *get_command(tmp_path, shapes))
    assert_same_training(tmp_path, trained[0])


def test_a_training_resumes_with_another_number_of_processes(shapes, tmp_path):
    stop_training(tmp_path, shapes, signal.SIGUSR1, get_mpirun)
    step = load_checkpoint(tmp_path / "checkpoint.pkl")["step"]
    output = run_mpi(1, *get_command(tmp_path, shapes))
    message = (
        "was saved by a training of 2 processes and continues with 1: a step now takes 4 images"
    )
    assert message in output
    if step:
        assert f"from step {2 * step}" in output
    assert [line["epoch"] for line in read_log(tmp_path)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "error, message",
    [
        ("InputError('photo.jpg: broken')", f"process 1 on {HOST}: error: photo.jpg: broken\n"),
        ("ZeroDivisionError('one')", "ZeroDivisionError: one\n"),
    ],
)
def test_an_error_in_one_process_ends_the_job(error, message):
    code = (
        "from util import dist, launch\nfrom util.errors import InputError\n"
        "with launch.job():\n"
        "    if launch.get_rank() == 1:\n"
        f"        raise {error}\n"
        "    dist.barrier()\n"
        "    dist.barrier()"
    )
    returncode, output = finish(start_mpi(2, "-c", code), 60)
    assert returncode == 1 and output.count(message) == 1, output


def test_jittor_without_mpi_is_an_error(tmp_path):
    command = get_command(tmp_path / "out", tmp_path / "shapes")
    code, output = finish(start_mpi(2, *command, use_mpi="0"), 120)
    message = "error: mpirun started several processes, but Jittor has no MPI"
    assert code == 1 and output.count(message) == 1, output


def test_an_error_in_all_processes_is_printed_once(tmp_path):
    flags = ["main.py", "--coco_path", tmp_path / "none", "--backbone_weights", "none"]
    code, output = finish(start_mpi(2, *flags), 120)
    assert code == 1 and output.count("error:") == 1 and "no such folder" in output, output


@pytest.mark.parametrize("flag, data", [("--shapes_train", "training"), ("--shapes_val", "val")])
def test_different_data_in_one_process_is_an_error(shapes, tmp_path, flag, data):
    """Such processes would wait for each other for ever."""
    code = (
        "from main import *\n"
        "other = sys.argv[2:] if launch.get_rank() == 1 else []\n"
        "with launch.job():\n"
        "    main(parse_args(sys.argv[1].split() + other))"
    )
    command = " ".join(map(str, get_command(tmp_path / "output", shapes)[1:]))
    other = [flag, 2, "--coco_path", tmp_path / "shapes"]
    code, output = finish(start_mpi(2, "-c", f"import sys\n{code}", command, *other), 300)
    message = f"of process 0 on {HOST} and of process 1 on {HOST} differ; give all machines the "
    assert code == 1 and re.search(rf"^error: the {data}.* data \(.*{message}", output, re.M), (
        output
    )


@pytest.mark.parametrize(
    "variable, launcher",
    [("SLURM_STEP_NUM_TASKS", "srun"), ("WORLD_SIZE", "torchrun"), ("PMI_SIZE", "MPICH")],
)
def test_other_launchers_are_an_error(variable, launcher):
    """Each of their processes would train alone."""
    done = run_python("main.py", "--help", **{variable: 2})
    assert done.returncode == 1 and done.stdout == "", done.stdout
    assert done.stderr.startswith(f"error: {launcher} started 2 processes ({variable}), which ")
    assert run_python("main.py", "--help", **{variable: 1}).returncode == 0


@pytest.fixture
def run_batch_script(tmp_path):
    """Return a function that runs docs/slurm.sh with flags in two processes, without Slurm.

    It sends the script two warnings once `warn_at` exists, and returns (exit code, output).
    """
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "scontrol $@"\n')
    scontrol.chmod(0o755)
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    environment = {
        **ENVIRONMENT,
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMPI_MCA_orte_default_hostfile": str(tmp_path / "hosts"),
        "SLURM_JOB_ID": "42",
    }

    def run(*flags, warn_at=None):
        process = subprocess.Popen(
            ["bash", "docs/slurm.sh", *map(str, flags)],
            cwd=REPO,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if warn_at:
            wait_for_file(process, warn_at)
            for _ in range(2):
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.1)
        return finish(process)

    return run


def test_the_batch_script_saves_requeues_and_continues(trained, shapes, run_batch_script, tmp_path):
    folder = tmp_path / "output"
    flags = get_command(folder, shapes)[1:]
    code, output = run_batch_script(*flags, warn_at=folder / "checkpoint.pkl")
    assert code == 138 and output.endswith("\nscontrol requeue 42\n"), output
    assert "stopped by SIGUSR1: submit the script again, with --resume auto\n" in output
    code, output = run_batch_script(*flags)
    assert code == 0 and "scontrol" not in output, output
    assert f"--resume auto: {folder}/checkpoint.pkl\n" in output
    assert_same_training(folder, trained[0])


def test_the_batch_script_fails_if_the_training_does(run_batch_script, tmp_path):
    code, output = run_batch_script("--coco_path", tmp_path / "none", "--output_dir", tmp_path)
    assert code == 1 and "no such folder" in output and "scontrol" not in output, output
