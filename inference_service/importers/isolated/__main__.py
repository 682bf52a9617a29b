"""Runs one task: reads it from a JSON file, prints progress and the result as lines of JSON."""

import importlib
import json
import resource
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from inference_service.core.errors import ModelInvalid, OutOfMemory, ServiceError
from inference_service.importers.isolated.report import keep_output, tell
from inference_service.importers.sandbox import restrict

# The functions that can be asked for, and the module of each.
_ACTIONS = {
    "check_model": "runtime_check",
    "describe": "onnx_graph",
    "describe_checkpoints": "nnunet_network",
    "export": "export",
    "measure": "runtime_check",
    "predict": "prediction",
    "read_postprocessing": "nnunet_postprocessing",
    "segment": "own_segmentation",
}
_MISSING_MEMORY = (
    *("not enough memory", "can't allocate memory", "Cannot allocate memory", "std::bad_alloc"),
    "failed to map segment",  # while a library is loaded
)


def main(path: Path) -> int:
    """Runs the task of a file; returns the exit status."""
    task = json.loads(path.read_text())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if (limits := task["limits"]) is not None:
        resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"],) * 2)
        restrict([Path(folder) for folder in limits["writable"]])
    warnings.simplefilter("ignore")
    try:
        tell(result=_action(task["action"])(task["arguments"]))
    except ServiceError as error:
        tell(error=[error.code, error.message])
    except ModuleNotFoundError as error:
        tell(missing=error.name)
    except MemoryError:
        _tell_of_memory()
    except (RuntimeError, ImportError, OSError) as error:
        if not any(text in str(error) for text in _MISSING_MEMORY):
            raise
        _tell_of_memory()
    else:
        return 0
    return 1


def _action(name: str) -> Callable[[Mapping[str, object]], object]:
    """Imports what one action needs, once its memory is limited."""
    if name not in _ACTIONS:
        raise ModelInvalid(f"there is no action {name}")
    module = importlib.import_module(f"inference_service.importers.isolated.{_ACTIONS[name]}")
    return cast("Callable[[Mapping[str, object]], object]", getattr(module, name))


def _tell_of_memory() -> None:
    error = OutOfMemory("the network needs more memory than this machine has free")
    tell(error=[error.code, error.message])


if __name__ == "__main__":
    keep_output()
    sys.exit(main(Path(sys.argv[1])))
