"""Files of weights and checkpoints, and loading them. Reading and converting needs no Jittor."""

from .checkpoint import load_checkpoint
from .model import load_model_state

__all__ = ["load_checkpoint", "load_model_state"]
