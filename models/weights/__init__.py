"""Load, save and convert weights and checkpoints. Reading and converting needs no Jittor."""
