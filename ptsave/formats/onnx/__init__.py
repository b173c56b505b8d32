"""ONNX models: their graph described, their initializers as tensors. Nothing in them runs."""
