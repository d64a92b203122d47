"""What test_dist.py runs under mpirun, one part each; the main process writes the result.

    mpirun -np N python tests/helpers/run_ours.py {train,save,messages,allreduce} OUT.npz
    [--batch_size B] [--steps S]
                                                       [--accum_steps A]
    python tests/helpers/run_ours.py alone OUT.npz --processes N [--batch_size B] [--steps S]

`train` takes steps as engine.py does; `alone` computes in one process what they should be, by the
definition: the mean over the processes of each one's loss, whose number of boxes is the mean over
the processes.
"""

import argparse
import sys
import time
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
from util.misc import nested_tensor_from_arrays  # noqa: E402
from util.optim import build_optimizer  # noqa: E402

CASE = "resnet18"


def train(batch_size, steps, accum_steps):
    """Losses as they are logged, weights after the first step, and the gradients of that step,
    before they are clipped.
    """
    args, model, criterion, _ = ours.build(CASE)
    optimizer = build_optimizer(model, args)
    result = {"losses": []}

    def after_step(step, logger):
        result["losses"].append(logger.meters["loss"].value)
        if step == 1:
            result.update(first_step(model, optimizer))

    batches = []
    for step in range(steps):
        for share in range(launch.get_rank() * accum_steps, (launch.get_rank() + 1) * accum_steps):
            images, targets = recipe.make_share(step % recipe.TRAINING_BATCHES, share, batch_size)
            batches.append((nested_tensor_from_arrays(images), targets))
    batches = tiny.Batches(batches, accum_steps)
    train_one_epoch(
        model, criterion, batches, optimizer, 0, 0, args.clip_max_norm, after_step=after_step
    )
    return result


def save():
    """After a step the main process alone reads the weights, as it does to save them; then all wait
    for each other.
    """
    # Waits for the step's computation, without CUDA only.
    engine.StepMemory.tidy = lambda self: None
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
        shares = [
            recipe.make_share(step % recipe.TRAINING_BATCHES, rank, batch_size)
            for rank in range(processes)
        ]
        mean = max(
            np.mean([sum(len(target["labels"]) for target in targets) for _, targets in shares]), 1
        )
        losses = [ours.loss_of(model, criterion, *share, num_boxes=mean) for share in shares]
        loss = sum(losses[1:], losses[0]) / processes
        result["losses"].append(loss.item())
        optimizer.backward(loss)
        optimizer.clip_grad_norm(args.clip_max_norm)
        optimizer.step()
        jt.sync_all()
        if step == 0:
            result.update(first_step(model, optimizer))
    return result


def first_step(model, optimizer):
    """The gradients as the optimizer's averages keep them, a tenth of the clipped ones; and the
    weights.
    """
    averages = {
        f"grad/{name}": average.numpy()
        for group in optimizer.param_groups
        for name, average in zip(group["names"], group["m"])
    }
    return {**averages, **{f"weight/{name}": var.numpy() for name, var in model.named_parameters()}}


def allreduce(numbers=41_302_368):
    """Seconds of each of ten means over the processes of as many float32 as DETR-R50 has
    parameters.
    """
    values, seconds = jt.ones(numbers), []
    values.sync()
    for _ in range(11):
        dist.barrier()
        begin = time.time()
        values.mpi_all_reduce("mean").sync()
        seconds.append(time.time() - begin)
    print("all-reduce, s:", *(f"{value:.3f}" for value in seconds))
    return {"seconds": seconds}


def messages():
    """What every process gets from each function of util.dist; asserted here, since only one
    process writes.
    """
    rank, count = launch.get_rank(), launch.get_world_size()
    assert (jt.rank, jt.world_size, jt.mpi.local_rank()) == (rank, count, launch.get_local_rank())
    value = {"rank": rank, "text": "é" * 1000 * rank, "array": np.arange(3 * rank), "huge": 2**70}
    for root in range(count):
        found = dist.broadcast(value, root)
        assert (
            found["text"] == "é" * 1000 * root
            and len(found["array"]) == 3 * root
            and found["huge"] == 2**70
        )
    assert [each["rank"] for each in dist.all_gather(value)] == list(range(count))
    gathered = dist.gather(value)
    assert (
        [each["rank"] for each in gathered] == list(range(count)) if rank == 0 else gathered is None
    )
    numbers = dist.all_gather_floats([rank + 0.1, 2**53, -np.inf])
    assert numbers.tolist() == [[each + 0.1, 2**53, -np.inf] for each in range(count)]
    assert dist.reduce_dict({"a": rank, "b": 1.5}) == {"a": (count - 1) / 2, "b": 1.5}
    dist.check_same("same", "words")
    try:
        dist.check_same(rank // (count - 1), "numbers")
        raise AssertionError("not noticed")
    except RuntimeError as error:
        assert str(error).startswith(f"numbers of process {count - 1} differ")
    turns = Path(sys.argv[2]).with_suffix(".turns")
    with dist.main_process_first():
        with open(turns, "a") as file:
            file.write(str(rank))
    assert turns.read_text()[0] == "0" and len(turns.read_text()) == count
    return {"processes": count}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["train", "save", "alone", "messages", "allreduce"])
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
            result = {"save": save, "messages": messages, "allreduce": allreduce}[options.part]()
        if launch.is_main_process():
            np.savez(options.out, **result)
