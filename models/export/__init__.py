"""Export a trained model to ONNX. Needs the package onnx, but not Jittor."""
