"""Models on disk and ONNX Runtime: the model registry, execution providers and sessions."""
