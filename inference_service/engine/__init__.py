"""Models on disk and ONNX Runtime: model registry, execution providers, sessions."""
