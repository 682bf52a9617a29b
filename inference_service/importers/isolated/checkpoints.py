"""Loads weights: tensors and plain values alone, whatever else a file holds."""

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy._core import multiarray

from inference_service.core.errors import InputNotFound, ModelInvalid, UnsupportedFormat

_NUMPY = ("scalar", "_reconstruct")
# The types beside tensors that training writes into checkpoints: numbers and arrays of NumPy, under old and new names.
_ALLOWED = [
    *((getattr(multiarray, name), f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name in _NUMPY),
    (np.dtype, "numpy.dtype"),
    (np.ndarray, "numpy.ndarray"),
    *(kind for name, kind in vars(np.dtypes).items() if name.endswith("DType")),
]
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
# Entries under which checkpoints keep the weights, tried in this order.
_ENTRIES = ("model", "state_dict", "model_state_dict", "network", "net", "network_weights")
# Put before all names where a parallel or a compiled network was saved as it is.
_WRAPPERS = ("module.", "_orig_mod.")


def load_checkpoint(path: Path, *, loader: Callable[..., object] | None = None) -> object:
    """Loads a file that torch.save has written, without running what it holds.

    Args:
        path: The file.
        loader: `torch.load`, for a caller that has replaced it.

    Raises:
        ModelInvalid: It is damaged, or holds another type than weights and plain values.
        UnsupportedFormat: It is a TorchScript file.
    """
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            return (loader or torch.load)(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise InputNotFound(
            f"the checkpoint {path.name} cannot be read by the process with limits, which has none of root's rights: "
            "give a copy that you own"
        ) from error
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        held = f"it holds {found[1]}" if found else "its pickle is damaged or does more than to hold weights"
        raise ModelInvalid(f"the checkpoint {path.name} is refused, and nothing of it was run: {held}") from error
    except (RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError, IndexError, OSError) as error:
        if "TorchScript" in str(error):
            raise UnsupportedFormat(
                f"{path.name} is a TorchScript file, not a checkpoint: import it by itself"
            ) from error
        if "memory" in str(error):
            raise
        raise ModelInvalid(f"the checkpoint {path.name} is damaged") from error


def find_weights(checkpoint: object, entry: str, name: str) -> dict[str, torch.Tensor]:
    """Finds the weights of a network in a checkpoint.

    Args:
        checkpoint: Weights by name, or an object that has them under a name of its own.
        entry: That name, where it is known.
        name: The file, for errors.

    Raises:
        ModelInvalid: There are none.
    """
    found = checkpoint
    if isinstance(found, Mapping):
        for each in (entry, *_ENTRIES):
            if isinstance(found.get(each), Mapping):
                found = found[each]
                break
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise ModelInvalid(f"the checkpoint {name} has no weights under {entry!r}")
    weights = {str(key): value for key, value in found.items()}
    while prefix := next((each for each in _WRAPPERS if all(key.startswith(each) for key in weights)), ""):
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def put_weights(network: torch.nn.Module, weights: Mapping[str, torch.Tensor], name: str) -> None:
    """Puts weights into a network, each into its place. The network may lie on the device meta, without memory.

    Raises:
        ModelInvalid: They are those of another network, or not finite.
    """
    own = network.state_dict()
    missing, further = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    differing = sorted(key for key in own.keys() & weights.keys() if own[key].shape != weights[key].shape)
    for problem, keys in (("lacks", missing), ("has further", further), ("has another shape of", differing)):
        if keys:
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise ModelInvalid(
                f"the checkpoint {name} is of another network than the source describes: it {problem} {keys[0]}{more}"
            )
    for key, value in weights.items():
        if not torch.isfinite(value).all():
            raise ModelInvalid(f"the checkpoint {name} has weights that are not finite: {key}")
    # Weights of half precision become single.
    single = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    network.load_state_dict(single, assign=any(each.is_meta for each in own.values()))
