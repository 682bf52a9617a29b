"""The process that runs PyTorch and the sources' own software: `python -m inference_service.importers.isolated TASK`.

It has limits on its memory, its network and its writing, and none of the service's secrets. Nothing else imports
PyTorch, ONNX, MONAI or nnU-Net, and nothing else loads a network of an import into ONNX Runtime.
"""

from collections.abc import Mapping
from typing import TypeAlias

Arguments: TypeAlias = Mapping[str, object]
"""The arguments of a task or of a builder, from JSON."""
