"""Models on disk and ONNX Runtime: registry, providers, sessions."""
