"""Medical image segmentation as a service: `Client` is the upstream's side, the rest is the worker's."""

import os
from typing import TYPE_CHECKING

# ONNX Runtime 1.31 for Linux keeps a device id in the user's cache and sends telemetry to its maker, unless this is set
# before it is loaded. Nothing that this service does is anybody else's business.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from inference_service.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> object:
    """Imports the client on first use, so that a worker's processes do not pay for it."""
    if name == "Client":
        from inference_service.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
