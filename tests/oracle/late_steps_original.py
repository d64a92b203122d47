"""Training steps of the original from states on its way (see late_steps.py). Its own interpreter
runs this file:

    python late_steps_original.py FOLDER STATES --epochs N…
    python late_steps_original.py FOLDER STATES/NNN.npz --steps N… [--double] --out NPZ

The first trains on the batches in FOLDER (see training.py), and writes STATES/NNN.npz after each of
the given epochs. The second takes steps from such a state, see `Steps` in training.py.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import run_model
import torch
import training
from train_original import build, load_weights


class Training:
    def __init__(self, folder, dtype=torch.float32):
        flags = json.loads((folder / "flags.json").read_text())
        self.args, self.model, self.criterion, _ = build(flags)
        load_weights(self.model, folder / "weights.npz")
        self.model.to(dtype).train()
        self.criterion.to(dtype).train()
        self.dtype = dtype
        self.optimizer = run_model.build_optimizer(self.model, self.args)
        self.parameters = {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def step(self, batch):
        samples, targets = run_model.to_torch(*batch, self.dtype)
        loss = run_model.weighted_loss(self.criterion, self.criterion(self.model(samples), targets))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip_max_norm)
        self.optimizer.step()

    def weights(self):
        return {
            name: value.numpy().copy()
            for name, value in self.model.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }

    def state(self):
        """What a state's file holds, see `Steps` in training.py: name -> array."""
        arrays = {f"weights/{name}": value for name, value in self.weights().items()}
        for name, parameter in self.parameters.items():
            state = self.optimizer.state[parameter]
            arrays[f"exp_avg/{name}"] = state["exp_avg"].numpy().copy()
            arrays[f"exp_avg_sq/{name}"] = state["exp_avg_sq"].numpy().copy()
        arrays["step"] = int(state["step"])
        arrays["rates"] = [group["lr"] for group in self.optimizer.param_groups]
        return arrays

    def load(self, arrays):
        """arrays: as `state` returns them."""
        for name, value in self.model.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                value.copy_(torch.from_numpy(arrays[f"weights/{name}"]))
        for name, parameter in self.parameters.items():
            averages = {
                kind: torch.from_numpy(arrays[f"{kind}/{name}"]).to(self.dtype, copy=True)
                for kind in ("exp_avg", "exp_avg_sq")
            }
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(arrays["step"])),
                **averages,
            }
        for group, rate in zip(self.optimizer.param_groups, arrays["rates"]):
            group["lr"] = float(rate)


def save_states(options):
    job = Training(options.folder)
    scheduler = torch.optim.lr_scheduler.StepLR(job.optimizer, job.args.lr_drop)
    options.state.mkdir()
    for epoch, path in enumerate(sorted((options.folder / "epochs").iterdir()), 1):
        for batch in training.load_epoch(path):
            job.step(batch)
        scheduler.step()
        if epoch in options.epochs:
            np.savez(options.state / f"{epoch:03}.npz", **job.state())


def take_steps(options):
    job = Training(options.folder, torch.float64 if options.double else torch.float32)
    with np.load(options.state) as arrays:
        job.load(dict(arrays))
    steps = training.Steps(options.folder, options.state, options.steps)
    for number, batch in enumerate(steps.batches, 1):
        job.step(batch)
        steps.add(number, job.weights())
    steps.save(options.out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("--epochs", type=int, nargs="+")
    parser.add_argument("--steps", type=int, nargs="+")
    parser.add_argument("--double", action="store_true", help="in float64")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.epochs:
        save_states(options)
    else:
        take_steps(options)
