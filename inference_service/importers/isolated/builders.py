"""Builds the networks of sources, each from the JSON that its importer has made."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import cast

import torch

from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolated import Arguments
from inference_service.importers.isolated.checkpoints import find_weights, load_checkpoint, put_weights
from inference_service.importers.isolated.nnunet_network import nnunet_network
from inference_service.importers.monai.network import ARGUMENTS, CHECKPOINT_FILE, CLASS, KEYS, NETWORKS, PARTS
from inference_service.importers.source_files import forbidden_in_torchscript, is_torchscript

# Arguments of older versions of MONAI that no longer have an effect, and those that have another name today.
_OBSOLETE = {"SwinUNETR": {"img_size"}}
_RENAMED = {"dimensions": "spatial_dims", "pos_embed": "proj_type"}
# Operators of TorchScript that reach beyond their tensors.
_FORBIDDEN = ("aten::save", "aten::from_file", "prim::PythonOp")


class FirstOutput(torch.nn.Module):  # type: ignore[misc]
    """A network that gives the first of several outputs."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the logits of a batch of windows."""
        return cast("torch.Tensor", first_output(self.network(image)))


def build(builder: str, arguments: Arguments) -> torch.nn.Module:
    """Builds a network, ready to run.

    Args:
        builder: The name of a builder.
        arguments: Its arguments.

    Raises:
        ModelInvalid: The arguments make no network, or the weights are of another one.
    """
    network = _BUILDERS[builder](arguments).eval()
    # The exporter takes a TorchScript module as it is, and none within another module.
    return network if isinstance(network, torch.jit.ScriptModule) else FirstOutput(network).eval()


def first_output(output: object) -> object:
    """Returns the first of several outputs: the mask, where deep supervision gives further ones."""
    while isinstance(output, list | tuple) and output:
        output = output[0]
    if isinstance(output, dict) and output:
        output = output["out"] if "out" in output else next(iter(output.values()))
    return output


def monai_network(arguments: Arguments) -> torch.nn.Module:
    """Builds a network of MONAI with the weights of a checkpoint.

    Args:
        arguments: `network`, a class of monai.networks.nets; `arguments`, its own; `checkpoint`, a path; and `entry`,
            the name of the weights in it; or a TorchScript file in its place. `made_with`, the version of MONAI that
            the bundle states, if it does.
    """
    name = str(arguments["network"])
    given = arguments["arguments"]
    if name not in NETWORKS or not isinstance(given, Mapping):
        raise ModelInvalid(f"a network of the class {name} is not imported")
    import monai.networks.nets as networks

    kind = getattr(networks, name, None)
    if kind is None:
        raise ModelInvalid(f"this version of MONAI has no network {name}")
    chosen = {key: _argument(value) for key, value in given.items() if key not in _OBSOLETE.get(name, ())}
    known = inspect.signature(kind.__init__).parameters
    for old, new in _RENAMED.items():
        if old in chosen and old not in known and new in known:
            chosen[new] = chosen.pop(old)
    if "pretrained" in known:
        # All weights come from the checkpoint, none from the network.
        chosen["pretrained"] = False
    try:
        network = kind(**chosen)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, NotImplementedError) as error:
        reason = f"MONAI cannot make the network {name}: {str(error)[:300]}"
        raise ModelInvalid(f"{reason}{_versions(arguments)}") from error
    path = Path(str(arguments["checkpoint"]))
    if is_torchscript(path):
        # The exporter does not take all that torch.jit.script makes, and its weights have the same names.
        weights = torchscript({"file": str(path)}).state_dict()
    else:
        weights = find_weights(load_checkpoint(path), str(arguments["entry"]), path.name)
    put_weights(network, weights, path.name)
    return network


def _versions(arguments: Arguments) -> str:
    """The end of an error of a network that this version of MONAI may be too new for."""
    from monai import __version__

    made_with = arguments.get("made_with")
    return f". The bundle is made for MONAI {made_with}, and this is {__version__}" if made_with else ""


def _argument(value: object) -> object:
    """An argument of a network: values of checkpoints are loaded, and its parts made."""
    if isinstance(value, list):
        return [_argument(each) for each in value]
    if not isinstance(value, Mapping):
        return value
    if CHECKPOINT_FILE in value:
        path = Path(str(value[CHECKPOINT_FILE]))
        found = load_checkpoint(path)
        for key in cast("list[str]", value[KEYS]):
            if not isinstance(found, Mapping) or key not in found:
                raise ModelInvalid(f"the checkpoint {path.name} has no {key}")
            found = found[key]
        return found
    if CLASS in value:
        import monai.networks.nets as networks

        name = str(value[CLASS])
        if name not in PARTS:
            raise ModelInvalid(f"a part of the class {name} is not imported")
        return getattr(networks, name)(**cast("dict[str, object]", _argument(value[ARGUMENTS])))
    return {key: _argument(each) for key, each in value.items()}


def bundle_network(arguments: Arguments) -> torch.nn.Module:
    """Builds a network by the Python of its bundle, which is run.

    Args:
        arguments: `folder`, that of the bundle; `module` and `class`; `arguments`, its own; `checkpoint`, a path; and
            `entry`, the name of the weights in it. `made_with`, as for a network of MONAI.
    """
    sys.path.insert(0, str(arguments["folder"]))
    name = f"{arguments['module']}.{arguments['class']}"
    given = cast("dict[str, object]", _argument(arguments["arguments"]))
    try:
        network = getattr(importlib.import_module(str(arguments["module"])), str(arguments["class"]))(**given)
    except ModuleNotFoundError as error:
        raise ModelInvalid(
            f"the bundle's own {name} needs the package {error.name}, which is not installed: pip install it beside "
            "this service"
        ) from error
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        reason = f"the bundle's own {name} fails: {type(error).__name__}: {str(error)[:300]}"
        raise ModelInvalid(f"{reason}{_versions(arguments)}") from error
    if not isinstance(network, torch.nn.Module):
        raise ModelInvalid(f"the bundle's own {name} is no network of PyTorch")
    path = Path(str(arguments["checkpoint"]))
    put_weights(network, find_weights(load_checkpoint(path), str(arguments["entry"]), path.name), path.name)
    return network


def torchscript(arguments: Arguments) -> torch.nn.Module:
    """Loads a TorchScript file.

    Args:
        arguments: `file`, its path.

    Raises:
        ModelInvalid: It is damaged, or has an operator that reaches beyond its tensors.
    """
    path = Path(str(arguments["file"]))
    # To load a file runs its methods __setstate__.
    if (name := forbidden_in_torchscript(path)) is not None:
        raise ModelInvalid(f"{path.name} has the operator aten::{name}, which is refused; nothing of it was run")
    try:
        network = torch.jit.load(str(path), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        if "memory" in str(error):
            raise
        raise ModelInvalid(f"{path.name} is not a TorchScript file that PyTorch {torch.__version__} loads") from error
    inlined = network.inlined_graph
    for kind in _FORBIDDEN:
        if inlined.findAllNodes(kind, recurse=True):
            raise ModelInvalid(f"{path.name} has the operator {kind}, which is refused")
    return network


class Mean(torch.nn.Module):  # type: ignore[misc]
    """Several networks as one: the mean of their logits."""

    def __init__(self, networks: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList(networks)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the logits of a batch of windows."""
        first, *others = self.networks
        total = first(image)
        # The memory of one network serves the next.
        for network in others:
            total = total + network(image)
        return total / len(self.networks)


def mean(arguments: Arguments) -> torch.nn.Module:
    """Builds several networks whose logits are averaged.

    Args:
        arguments: `builder`, and `networks`, its arguments for each of them.
    """
    networks = cast("Sequence[Arguments]", arguments["networks"])
    return Mean([build(str(arguments["builder"]), each) for each in networks])


_BUILDERS: Mapping[str, Callable[[Arguments], torch.nn.Module]] = {
    "bundle_network": bundle_network,
    "mean": mean,
    "monai_network": monai_network,
    "nnunet_network": nnunet_network,
    "torchscript": torchscript,
}
