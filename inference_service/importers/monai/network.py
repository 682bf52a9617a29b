"""The network of a bundle: its class, which must be a known one, its arguments as JSON, and its checkpoint."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TypeAlias

from inference_service.importers.monai.bundle_config import BundleConfig
from inference_service.importers.monai.component import Component
from inference_service.importers.monai.values import Symbol, Value

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

NETWORKS = frozenset(
    {
        "AHNet",
        "AttentionUnet",
        "BasicUNet",
        "BasicUNetPlusPlus",
        "BasicUnet",
        "BasicUnetPlusPlus",
        "DynUNet",
        "DynUnet",
        "FlexibleUNet",
        "HighResNet",
        "MedNeXt",
        "MedNeXtBase",
        "MedNeXtLarge",
        "MedNeXtMedium",
        "MedNeXtSmall",
        "SegResNet",
        "SegResNetDS",
        "SegResNetDS2",
        "SegResNetVAE",
        "SwinUNETR",
        "UNETR",
        "UNet",
        "Unet",
        "VNet",
    }
)
"""The classes of monai.networks.nets that are made from a config: they segment, and to make them has no effects."""
DEFAULT_CHECKPOINT = PurePosixPath("models/model.pt")
_VOLUMES = 3


def find_network(config: BundleConfig) -> Component:
    """Returns the network of a config.

    Raises:
        ModelInvalid: There is none, or its class is not a known one.
    """
    network = config.component("network_def" if "network_def" in config else "network")
    if not network.is_monai:
        network.refuse(f"{network.target} is Python of the bundle's own, which is not run")
    if network.name not in NETWORKS:
        network.refuse(f"a network of this class is not imported; known ones: {', '.join(sorted(NETWORKS))}")
    return network


def has_known_network(config: BundleConfig) -> bool:
    """Returns True if the config has a network of a known class."""
    key = "network_def" if "network_def" in config else "network"
    return key in config and find_name(config.items[key]) in NETWORKS


def find_name(written: Value) -> str | None:
    """Returns the name of the class of a component as it is written; None for anything else."""
    target = written.get("_target_") if isinstance(written, Mapping) else None
    return target.rpartition(".")[2] if isinstance(target, str) else None


def network_arguments(network: Component) -> dict[str, Json]:
    """Returns a network's arguments as JSON; a name of MONAI, such as Norm.BATCH, becomes its last part.

    Raises:
        ModelInvalid: An argument is neither a plain value nor such a name.
    """
    return {name: _plain(network, name, network.take(name)) for name in network.arguments if not name.startswith("_")}


def _plain(network: Component, argument: str, value: Value) -> Json:
    if isinstance(value, Symbol):
        return value.name.rpartition(".")[2].lower()
    if isinstance(value, list | tuple):
        return [_plain(network, argument, each) for each in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(network, argument, each) for key, each in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    network.refuse("the argument is neither a plain value nor a name of MONAI", argument)


def dimensions(network: Component) -> int:
    """Returns the number of spatial dimensions of a network."""
    for argument in ("spatial_dims", "dimensions"):
        if network.take(argument) is not None:
            return network.whole(argument)
    return _VOLUMES


def channel_count(network: Component, *arguments: str) -> int | None:
    """Returns the number of channels that the first of these arguments states; None if there is none of them."""
    for argument in arguments:
        if network.take(argument) is not None:
            return network.whole(argument)
    return None


def find_checkpoint(config: BundleConfig) -> tuple[PurePosixPath, str]:
    """Finds the file that the bundle's CheckpointLoader loads, and the name of the network in it.

    Returns:
        The path in the bundle's folder, and the name, such as model.

    Raises:
        ModelInvalid: The path leads out of the bundle.
    """
    for key in _keys_of_loaders(config.items, ""):
        loader = config.component(key)
        path = PurePosixPath(loader.text("load_path"))
        if path.is_absolute() or ".." in path.parts:
            loader.refuse("the checkpoint lies outside the bundle", "load_path")
        written = loader.arguments.get("load_dict")
        names = list(written) if isinstance(written, Mapping) else []
        return path, str(names[0]) if names else "model"
    return DEFAULT_CHECKPOINT, "model"


def _keys_of_loaders(value: Value, key: str) -> list[str]:
    """Keys of the components that load a checkpoint, in the order of the file."""
    found = []
    if isinstance(value, Mapping):
        target = value.get("_target_")
        if isinstance(target, str) and target.rpartition(".")[2] == "CheckpointLoader":
            return [key]
        children = list(value.items())
    elif isinstance(value, list):
        children = [(str(index), item) for index, item in enumerate(value)]
    else:
        return []
    for name, child in children:
        found.extend(_keys_of_loaders(child, f"{key}#{name}" if key else str(name)))
    return found
