"""The model, its loss and its postprocessing. Nothing here imports Jittor before it is needed."""
