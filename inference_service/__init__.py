"""Medical image segmentation as a service. The names below are for upstreams; the worker's code is in the packages.

`Client` raises subclasses of `ServiceError`, such as `BadRequest` and `DatabaseUnavailable`: import them from
`inference_service.core.errors`.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

# ONNX Runtime 1.31 for Linux stores a device id in the user's cache and sends telemetry, unless this is set before it
# is loaded. A service for medical images sends nothing to third parties.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

if TYPE_CHECKING:
    from inference_service.client import Client
    from inference_service.contract.task_message import (
        ChannelReference,
        InputReference,
        OutputReference,
        Priority,
        RequestOptions,
        SegmentRequest,
    )
    from inference_service.core.errors import ErrorCode, ServiceError
    from inference_service.core.report_warnings import WarningCode
    from inference_service.core.settings import Settings
    from inference_service.jobs.job_store import Job, Transition
    from inference_service.jobs.schema import JobState
    from inference_service.jobs.workers.worker_registry import Worker

__all__ = [
    "ChannelReference",
    "Client",
    "ErrorCode",
    "InputReference",
    "Job",
    "JobState",
    "OutputReference",
    "Priority",
    "RequestOptions",
    "SegmentRequest",
    "ServiceError",
    "Settings",
    "Transition",
    "WarningCode",
    "Worker",
]

_MODULES = {
    "ChannelReference": "contract.task_message",
    "Client": "client",
    "ErrorCode": "core.errors",
    "InputReference": "contract.task_message",
    "Job": "jobs.job_store",
    "JobState": "jobs.schema",
    "OutputReference": "contract.task_message",
    "Priority": "contract.task_message",
    "RequestOptions": "contract.task_message",
    "SegmentRequest": "contract.task_message",
    "ServiceError": "core.errors",
    "Settings": "core.settings",
    "Transition": "jobs.job_store",
    "WarningCode": "core.report_warnings",
    "Worker": "jobs.workers.worker_registry",
}


def __getattr__(name: str) -> object:
    """Imports a public name on first use, so that a worker's processes do not load the client's modules."""
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
