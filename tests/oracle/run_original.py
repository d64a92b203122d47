"""Runs training steps of the original under torch.distributed (gloo), one process for each share of
the recipe's batches:

    ORACLE_PYTHON tests/oracle/run_original.py --processes N [--batch_size B] [--steps S] OUT.npz

OUT.npz holds `losses` [S] as the original logs them, and after the first step `grad/NAME`, a tenth
of the clipped gradients as AdamW's averages keep them, and `weight/NAME`.
"""

import argparse
import os

import numpy as np
import recipe
import run_model
import torch
import torch.distributed
import torch.multiprocessing
from detr.util.misc import reduce_dict

CASE = "resnet18"


def train(rank, options):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(options.port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=options.processes)
    torch.set_num_threads(1)
    args = argparse.Namespace(**recipe.flags(CASE))
    model, criterion, _ = run_model.build(CASE)
    model.train()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = run_model.build_optimizer(model, args)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    result = {"losses": []}
    for step in range(options.steps):
        shared = recipe.make_share(step % recipe.TRAINING_BATCHES, rank, options.batch_size)
        samples, targets = run_model.to_torch(*shared)
        losses = criterion(parallel(samples), targets)
        loss = run_model.weighted_loss(criterion, losses)
        logged = run_model.weighted_loss(criterion, reduce_dict(losses))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip_max_norm)
        optimizer.step()
        result["losses"].append(logged.item())
        if step == 0:
            result.update(
                {
                    f"grad/{name}": optimizer.state[p]["exp_avg"].numpy().copy()
                    for name, p in trainable
                }
            )
            result.update(
                {
                    f"weight/{name}": p.detach().numpy().copy()
                    for name, p in model.state_dict().items()
                }
            )
    if rank == 0:
        np.savez(options.out, **result)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--port", type=int, default=29517)
    options = parser.parse_args()
    torch.multiprocessing.spawn(train, (options,), nprocs=options.processes)
