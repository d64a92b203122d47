"""The parts of test_dist.py that run under mpirun; the main process saves the result.

    mpirun -np N python tests/helpers/run_ours.py {train,save,messages} OUT.npz
        [--batch_size B] [--steps S] [--accum_steps A]
    python tests/helpers/run_ours.py alone OUT.npz --processes N [--batch_size B] [--steps S]

`train` takes training steps with engine.py; `alone` computes in one process what they should be by
definition: the loss is the mean of the processes' losses, whose number of boxes is the mean over
the processes.
"""

import argparse
import platform
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS / "helpers"), str(TESTS / "oracle")]
import numpy as np  # noqa: E402
import ours  # noqa: E402
import recipe  # noqa: E402
import tiny  # noqa: E402

import engine  # noqa: E402
from engine import train_one_epoch  # noqa: E402
from models.weights.model import model_state  # noqa: E402
from util import dist, launch  # noqa: E402
from util.backend import jt  # noqa: E402
from util.errors import InputError  # noqa: E402
from util.misc import nested_tensor_from_arrays  # noqa: E402
from util.optim import build_optimizer  # noqa: E402

CASE = "resnet18"


def train(batch_size, steps, accum_steps):
    """Return the logged losses, and weights and gradients of the first step."""
    args, model, criterion, _ = ours.build(CASE)
    optimizer = build_optimizer(model, args)
    result = {"losses": []}

    def after_step(step, logger):
        result["losses"].append(logger.meters["loss"].value)
        if step == 1:
            result.update(get_first_step(model, optimizer))

    batches = []
    first = launch.get_rank() * accum_steps
    for step in range(steps):
        for part in range(first, first + accum_steps):
            images, targets = recipe.make_share(step % recipe.TRAINING_BATCHES, part, batch_size)
            batches.append((nested_tensor_from_arrays(images), targets))
    batches = tiny.Batches(batches, accum_steps)
    train_one_epoch(
        model, criterion, batches, optimizer, 0, 0, args.clip_max_norm, after_step=after_step
    )
    return result


def save():
    """Read the weights in the main process alone after a step, as saving does."""
    engine.StepMemory.tidy = lambda self: None  # it synchronizes, but not with CUDA
    args, model, criterion, _ = ours.build(CASE)
    images, targets = recipe.make_share(0, launch.get_rank(), 1)
    batches = tiny.Batches([(nested_tensor_from_arrays(images), targets)])
    train_one_epoch(
        model, criterion, batches, build_optimizer(model, args), 0, 0, args.clip_max_norm
    )
    weights = model_state(model) if launch.is_main_process() else {}
    dist.barrier()
    return {"weights": len(weights)}


def alone(batch_size, steps, processes):
    args, model, criterion, _ = ours.build(CASE)
    model.train()
    optimizer = build_optimizer(model, args)
    result = {"losses": []}
    for step in range(steps):
        index = step % recipe.TRAINING_BATCHES
        parts = [recipe.make_share(index, rank, batch_size) for rank in range(processes)]
        counts = [sum(len(target["labels"]) for target in targets) for _, targets in parts]
        mean = max(np.mean(counts), 1)
        losses = [ours.loss_of(model, criterion, *part, num_boxes=mean) for part in parts]
        loss = sum(losses[1:], losses[0]) / processes
        result["losses"].append(loss.item())
        optimizer.backward(loss)
        optimizer.clip_grad_norm(args.clip_max_norm)
        optimizer.step()
        jt.sync_all()
        if step == 0:
            result.update(get_first_step(model, optimizer))
    return result


def get_first_step(model, optimizer):
    """Return weights and gradients; the latter are exp_avg, a tenth of the clipped gradients."""
    gradients = {
        f"grad/{name}": average.numpy()
        for group in optimizer.param_groups
        for name, average in zip(group["names"], group["m"])
    }
    weights = {f"weight/{name}": var.numpy() for name, var in model.named_parameters()}
    return {**gradients, **weights}


def messages():
    """Check each function of util.dist in every process."""
    rank, count = launch.get_rank(), launch.get_world_size()
    assert (jt.rank, jt.world_size, jt.mpi.local_rank()) == (rank, count, launch.get_local_rank())
    value = {"rank": rank, "text": "é" * 1000 * rank, "array": np.arange(3 * rank), "huge": 2**70}
    for root in range(count):
        received = dist.broadcast(value, root)
        assert received["text"] == "é" * 1000 * root and received["huge"] == 2**70
        assert len(received["array"]) == 3 * root
    ranks = list(range(count))
    assert [each["rank"] for each in dist.all_gather(value)] == ranks
    gathered = dist.gather(value)
    assert [each["rank"] for each in gathered] == ranks if rank == 0 else gathered is None
    floats = dist.all_gather_floats([rank + 0.1, 2**53, -np.inf])
    assert floats.tolist() == [[each + 0.1, 2**53, -np.inf] for each in ranks]
    assert dist.reduce_dict({"a": rank, "b": 1.5}) == {"a": (count - 1) / 2, "b": 1.5}
    dist.check_same(lambda: "same", "words")
    try:
        dist.check_same(lambda: rank // (count - 1), "numbers")
        raise AssertionError("check_same notices no difference")
    except InputError as error:
        assert f" and of process {count - 1} on {platform.node()} differ; " in str(error)
    turns = Path(sys.argv[2]).with_suffix(".turns")
    with dist.main_process_first(), open(turns, "a") as file:
        file.write(str(rank))
    assert turns.read_text()[0] == "0" and len(turns.read_text()) == count
    return {"processes": count}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["train", "save", "alone", "messages"])
    parser.add_argument("out")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--accum_steps", type=int, default=1)
    options = parser.parse_args()
    with launch.job():
        if options.part == "train":
            result = train(options.batch_size, options.steps, options.accum_steps)
        elif options.part == "alone":
            result = alone(options.batch_size, options.steps, options.processes)
        else:
            result = {"save": save, "messages": messages}[options.part]()
        if launch.is_main_process():
            np.savez(options.out, **result)
