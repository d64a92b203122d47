"""A trained model as an ONNX file, for programs without Jittor. Needs the package onnx."""
