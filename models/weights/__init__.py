"""Load, save and convert weights and checkpoints. Reading and converting do not need Jittor."""
