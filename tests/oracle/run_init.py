"""Builds the original's model as its main.py does, without pretrained weights. The original's
interpreter runs this:

    ORACLE_PYTHON tests/oracle/run_init.py CASE OUT.npz

CASE is one of recipe.CASES. Writes for each tensor of the fresh state dict `NAME/shape` and
`NAME/figures`: mean, standard deviation, least and greatest value.
"""

import argparse
import sys

import detr.models.backbone
import numpy as np
import recipe
import torch
from detr.models import build_model

detr.models.backbone.is_main_process = lambda: False  # no download of ImageNet weights


def main(case, path):
    torch.manual_seed(42)
    model, _, _ = build_model(argparse.Namespace(**recipe.flags(case)))
    out = {}
    for name, tensor in model.state_dict().items():
        values = tensor.double().numpy()
        out[f"{name}/shape"] = np.array(values.shape)
        out[f"{name}/figures"] = np.array([values.mean(), values.std(), values.min(), values.max()])
    np.savez(path, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
