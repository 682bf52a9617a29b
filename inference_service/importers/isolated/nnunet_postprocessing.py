"""Reads postprocessing.pkl without running what it holds: the few names in it stand for plain values."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolated import Arguments
from inference_service.importers.monai.values import count_nodes
from inference_service.importers.nnunet.postprocessing import LARGEST_COMPONENT

_MAX_BYTES = 2**18
_INTEGERS = {"i1": True, "i2": True, "i4": True, "i8": True, "u1": False, "u2": False, "u4": False, "u8": False}
_MAX_DEPTH = 4
_MAX_NODES = 2**16


class _Type:
    """A data type of NumPy: its name, such as i8."""

    def __init__(self, name: object, *_: object) -> None:
        self.name = str(name)

    def __setstate__(self, state: object) -> None:
        """Ignores the byte order and the flags; the bytes are those of a little-endian machine."""


def _scalar(kind: object, content: object) -> int:
    """The value of a NumPy scalar."""
    if not isinstance(kind, _Type) or not isinstance(content, bytes) or kind.name not in _INTEGERS:
        raise pickle.UnpicklingError("a scalar that is no integer")
    return int.from_bytes(content, "little", signed=_INTEGERS[kind.name])


_MEANT: Mapping[tuple[str, str], object] = {
    ("nnunetv2.postprocessing.remove_connected_components", LARGEST_COMPONENT): LARGEST_COMPONENT,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        """Returns what stands for a name, and refuses all other names."""
        if (module, name) not in _MEANT:
            raise pickle.UnpicklingError(f"{module}.{name}"[:200])
        return _MEANT[module, name]

    def persistent_load(self, pid: object) -> NoReturn:
        """Refuses objects that lie outside."""
        raise pickle.UnpicklingError("an object outside")


def read_postprocessing(task: Arguments) -> dict[str, object]:
    """Reads a postprocessing.pkl.

    Args:
        task: `file`, its path.

    Returns:
        `postprocessing_fns` and `postprocessing_kwargs`, as postprocessing.json has them.

    Raises:
        ModelInvalid: It is damaged, or holds anything else.
    """
    path = Path(str(task["file"]))
    if path.stat().st_size > _MAX_BYTES:
        raise ModelInvalid(f"{path.name} has more than {_MAX_BYTES} bytes, which is the most that is read")
    try:
        with path.open("rb") as file:
            functions, arguments = _Unpickler(file).load()
    except pickle.UnpicklingError as error:
        raise ModelInvalid(f"{path.name} is refused, and nothing of it was run: it holds {error}") from error
    except (
        ValueError,
        TypeError,
        EOFError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ModelInvalid(f"{path.name} is damaged") from error
    # References to one list may stand for many more values than the file has bytes.
    if count_nodes([functions, arguments], _MAX_NODES) > _MAX_NODES:
        raise ModelInvalid(f"{path.name} unfolds to more than {_MAX_NODES} values, which is the most that is read")
    return {"postprocessing_fns": _plain(functions), "postprocessing_kwargs": _plain(arguments)}


def _plain(value: object, depth: int = _MAX_DEPTH) -> object:
    """A value as JSON; refuses deep or other ones."""
    if depth and isinstance(value, list | tuple):
        return [_plain(each, depth - 1) for each in value]
    if depth and isinstance(value, dict):
        return {str(key): _plain(each, depth - 1) for key, each in value.items()}
    if isinstance(value, str | int):
        return value
    raise ModelInvalid("postprocessing.pkl has not the form that nnU-Net gives it")
