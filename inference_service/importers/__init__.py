"""Other people's models: read, exported to ONNX and installed. Only this package needs the extra `import`."""
