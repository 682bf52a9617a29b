"""Medical image segmentation as a service: `Client` is the upstream's side, the rest is the worker's."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference_service.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> object:
    """Imports the client on first use, so that a worker's processes do not pay for it."""
    if name == "Client":
        from inference_service.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
