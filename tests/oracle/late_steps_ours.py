"""Training steps of this project from a state on the original's way (see late_steps.py):

python tests/oracle/late_steps_ours.py FOLDER STATES/NNN.npz --steps N… --out NPZ
"""

import argparse
from pathlib import Path

import numpy as np
import training
from train_ours import Loader, build_model, program, runtime


def load(path, model, optimizer):
    from models.weights.model import load_model_state
    from models.weights.training import load_optimizer_state

    load_model_state(model, training.weights_of(path), str(path))
    with np.load(path) as file:
        arrays = dict(file)
    names = [group["names"] for group in optimizer.param_groups]
    averages = {
        name: {
            "step": int(arrays["step"]),
            "exp_avg": arrays[f"exp_avg/{name}"],
            "exp_avg_sq": arrays[f"exp_avg_sq/{name}"],
        }
        for group in names
        for name in group
    }
    groups = [{"names": group, "lr": float(rate)} for group, rate in zip(names, arrays["rates"])]
    load_optimizer_state(optimizer, {"state": averages, "groups": groups}, str(path))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("--steps", type=int, nargs="+")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    runtime.prepare_device("cpu")

    from engine import train_one_epoch
    from models.weights.model import model_state

    args, model, criterion, _ = build_model(options.folder)
    optimizer = program.build_optimizer(model, args)
    load(options.state, model, optimizer)
    steps = training.Steps(options.folder, options.state, options.steps)
    train_one_epoch(
        model,
        criterion,
        Loader(steps.batches),
        optimizer,
        epoch=0,
        seed=args.seed,
        max_norm=args.clip_max_norm,
        after_step=lambda number, _: steps.add(number, model_state(model)),
    )
    steps.save(options.out)


if __name__ == "__main__":
    main()
