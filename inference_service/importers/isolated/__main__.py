"""Runs one task: reads it from a JSON file, prints progress and the result as lines of JSON."""

import json
import resource
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

from inference_service.core.errors import ModelInvalid, OutOfMemory, ServiceError
from inference_service.importers.isolated.report import keep_output, tell
from inference_service.importers.sandbox import restrict_writing

_MISSING_MEMORY = (
    *("not enough memory", "can't allocate memory", "Cannot allocate memory", "std::bad_alloc"),
    "failed to map segment",  # while a library is loaded
)


def main(path: Path) -> int:
    """Runs the task of a file; returns the exit status."""
    task = json.loads(path.read_text())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (task["memory_bytes"], task["memory_bytes"]))
    if task["writable"]:
        restrict_writing([Path(folder) for folder in task["writable"]])
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
    if name == "export":
        from inference_service.importers.isolated.export import export

        return export
    if name == "describe":
        from inference_service.importers.isolated.onnx_graph import describe

        return describe
    if name == "describe_checkpoints":
        from inference_service.importers.isolated.nnunet_network import describe_checkpoints

        return describe_checkpoints
    if name == "read_postprocessing":
        from inference_service.importers.isolated.nnunet_postprocessing import read_postprocessing

        return read_postprocessing
    if name == "predict":
        from inference_service.importers.isolated.prediction import predict

        return predict
    raise ModelInvalid(f"there is no action {name}")


def _tell_of_memory() -> None:
    error = OutOfMemory("the network needs more memory than this machine has free")
    tell(error=[error.code, error.message])


if __name__ == "__main__":
    keep_output()
    sys.exit(main(Path(sys.argv[1])))
