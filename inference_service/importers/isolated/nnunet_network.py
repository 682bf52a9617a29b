"""Builds nnU-Net's networks from their plans, and reads what checkpoints say about themselves."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolated import Arguments
from inference_service.importers.isolated.checkpoints import find_weights, load_checkpoint, put_weights
from inference_service.importers.nnunet.network import BLOCKS, NETWORKS, OPERATOR_ARGUMENTS, OPERATORS

_ENTRY = "network_weights"
# The heads of deep supervision; only the last one is used for a prediction.
_HEAD = re.compile(r"(?:.*\.)?seg_layers\.(\d+)\.weight")
_MAX_AXES = 3
_MAX_NAME = 200
# An ONNX file has at most 2 GiB.
_MAX_WEIGHTS = 2**29


def nnunet_network(arguments: Arguments) -> torch.nn.Module:
    """Builds a network of nnU-Net with the weights of a checkpoint.

    Args:
        arguments: `network`, a class of dynamic_network_architectures; `arguments`, its own; `inputs` and `outputs`,
            its channels; `checkpoint`, a path; and `trainer`, the name of the class that trained it.

    Raises:
        ModelInvalid: The arguments make no network, or the weights are of another one.
    """
    path = Path(str(arguments["checkpoint"]))
    network = _empty(arguments)
    weights = find_weights(load_checkpoint(path), _ENTRY, path.name)
    put_weights(network, weights, f"{path.parent.name}/{path.name} (trained by {arguments['trainer']})")
    return network


def describe_checkpoints(task: Arguments) -> dict[str, object]:
    """Reads what checkpoints say about themselves.

    Args:
        task: `files`, their paths.

    Returns:
        `checkpoints`: `trainer`, `configuration`, `mirror_axes`, `inputs`, `outputs` and the number of `weights` of
        each.

    Raises:
        ModelInvalid: One is damaged, holds more than weights, or does not come from nnU-Net.
    """
    return {"checkpoints": [_describe(Path(str(file))) for file in cast("Sequence[object]", task["files"])]}


def _empty(arguments: Arguments) -> torch.nn.Module:
    """A network without memory for its weights, so that these are checked before any is taken."""
    name, given = str(arguments["network"]), arguments["arguments"]
    if name not in NETWORKS or not isinstance(given, Mapping):
        raise ModelInvalid(f"a network of the class {name} is not imported")
    from dynamic_network_architectures.architectures import unet

    chosen = {key: _class(key, value) for key, value in given.items()}
    channels = {"input_channels": arguments["inputs"], "num_classes": arguments["outputs"]}
    try:
        with torch.device("meta"):
            network = getattr(unet, name)(**chosen, **channels, deep_supervision=False)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, RuntimeError) as error:
        raise ModelInvalid(f"plans.json describes no network {name}: {str(error)[:300]}") from error
    if sum(each.numel() for each in network.parameters()) > _MAX_WEIGHTS:
        raise ModelInvalid(f"the network of plans.json has more than {_MAX_WEIGHTS} weights")
    return network


def _class(argument: str, value: object) -> object:
    """The class that an argument names, one of a list; any other value as it is."""
    if argument in OPERATOR_ARGUMENTS and value is not None:
        if value not in OPERATORS:
            raise ModelInvalid(f"the operator {str(value)[:_MAX_NAME]} is not used")
        return getattr(torch.nn, str(value))
    if argument == "block":
        if value not in BLOCKS:
            raise ModelInvalid(f"the block {str(value)[:_MAX_NAME]} is not used")
        from dynamic_network_architectures.building_blocks import residual

        return getattr(residual, str(value))
    return value


def _describe(path: Path) -> dict[str, object]:
    checkpoint = load_checkpoint(path)
    place = f"{path.parent.name}/{path.name}"
    arguments = checkpoint.get("init_args") if isinstance(checkpoint, Mapping) else None
    if not isinstance(checkpoint, Mapping) or not isinstance(arguments, Mapping):
        raise ModelInvalid(f"the checkpoint {place} does not come from nnU-Net's training: it has no init_args")
    weights = find_weights(checkpoint, _ENTRY, place)
    first = next((each.shape for each in weights.values() if each.ndim in (4, 5)), None)
    heads = {int(match[1]): key for key in weights if (match := _HEAD.fullmatch(key))}
    if first is None or not heads:
        raise ModelInvalid(f"the checkpoint {place} is of another network than nnU-Net's: it has no seg_layers")
    return {
        "trainer": _name(checkpoint.get("trainer_name"), place, "trainer_name"),
        "configuration": _name(arguments.get("configuration"), place, "init_args.configuration"),
        "mirror_axes": _axes(checkpoint.get("inference_allowed_mirroring_axes"), place, len(first) - 2),
        "inputs": first[1],
        "outputs": weights[heads[max(heads)]].shape[0],
        # Modules that a network has twice are listed twice.
        "weights": sum({each.data_ptr(): each.numel() for each in weights.values()}.values()),
    }


def _name(value: object, place: str, key: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\w.-]{1,200}", value):
        raise ModelInvalid(f"the checkpoint {place} has no {key}")
    return value


def _axes(value: object, place: str, dimensions: int) -> list[int]:
    found = list(value) if isinstance(value, Sequence) and len(value) <= _MAX_AXES else [] if value is None else [-1]
    axes = [int(axis) for axis in found if isinstance(axis, int)]
    if len(axes) < len(found) or len(set(axes)) < len(axes) or not set(axes) <= set(range(dimensions)):
        raise ModelInvalid(f"the checkpoint {place} has inference_allowed_mirroring_axes that are no axes of windows")
    return axes
