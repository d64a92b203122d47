"""Files of weights and checkpoints, and loading them. Reading and converting needs no Jittor."""
