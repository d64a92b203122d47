"""Files of weights and checkpoints, and what goes from them into a model. Reading and converting
them needs no compiled Jittor.
"""

from .checkpoint import load_checkpoint
from .model import load_model_state

__all__ = ["load_checkpoint", "load_model_state"]
