"""Train the original under torch.distributed (gloo), in its own interpreter:

    ORACLE_PYTHON tests/oracle/run_processes.py --processes N [--batch_size B] [--steps S] OUT.npz

Each process takes its share of the recipe's batches. OUT.npz holds `losses` [S] as the original
logs them, and after the first step `weight/NAME` and `grad/NAME`, a tenth of the clipped gradients
as AdamW's averages keep them.
"""

import argparse

import numpy as np
import recipe
import run_model
import torch
from detr.util.misc import reduce_dict

CASE = "resnet18"


def train(rank, options):
    run_model.join_processes(rank, options)
    args = argparse.Namespace(**recipe.flags(CASE))
    model, criterion, _ = run_model.build(CASE)
    model.train()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = run_model.build_optimizer(model, args)
    result = {"losses": []}
    for step in range(options.steps):
        batch = recipe.make_share(step % recipe.TRAINING_BATCHES, rank, options.batch_size)
        losses = run_model.train_step(parallel, criterion, optimizer, batch, args.clip_max_norm)
        result["losses"].append(run_model.weighted_loss(criterion, reduce_dict(losses)).item())
        if step == 0:
            for name, p in model.named_parameters():
                if p.requires_grad:
                    result[f"grad/{name}"] = optimizer.state[p]["exp_avg"].numpy().copy()
            for name, p in model.state_dict().items():
                result[f"weight/{name}"] = p.numpy().copy()
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
