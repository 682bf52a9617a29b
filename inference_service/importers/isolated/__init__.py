"""The process that runs PyTorch and the sources' own software: `python -m inference_service.importers.isolated JOB`.

It has a limit on its memory, and none of the service's secrets. Nothing else imports PyTorch, ONNX, MONAI or nnU-Net.
"""
