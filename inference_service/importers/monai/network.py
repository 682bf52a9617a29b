"""The network of a bundle: its class, which must be a known one, its arguments as JSON, and its checkpoint."""

from collections.abc import Mapping
from math import prod
from pathlib import PurePosixPath
from typing import TypeAlias

from inference_service.core.errors import ModelInvalid
from inference_service.importers.monai.bundle_config import BundleConfig, is_disabled
from inference_service.importers.monai.component import Component
from inference_service.importers.monai.values import FromCheckpoint, Symbol, Value

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

NETWORKS = frozenset(
    {
        "AHNet",
        "AttentionUnet",
        "BasicUNet",
        "BasicUNetPlusPlus",
        "BasicUnet",
        "BasicUnetPlusPlus",
        "DAF3D",
        "DiNTS",
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
PARTS = frozenset({"TopologyInstance"})
"""The classes of monai.networks.nets that are arguments of such networks."""
CHECKPOINT_FILE, KEYS, CLASS, ARGUMENTS = "_checkpoint_", "_keys_", "_class_", "_arguments_"
"""In arguments as JSON: the file and keys of a value in a checkpoint; the class and arguments of a part."""
_CPU = "cpu"
_MULTIPLES = {
    **dict.fromkeys(("BasicUNet", "BasicUnet", "BasicUNetPlusPlus", "BasicUnetPlusPlus", "VNet", "DiNTS"), 16),
    **dict.fromkeys(("SwinUNETR", "AHNet", "FlexibleUNet"), 32),
}
DEFAULT_CHECKPOINT = PurePosixPath("models/model.pt")
_VOLUMES = 3
_PLANES = 2
# Networks for planes, unless they are told otherwise.
_PLANAR = {"FlexibleUNet"}


def find_network(config: BundleConfig) -> Component:
    """Returns the network of a config: a class of MONAI that segments, or one of the bundle's own.

    Raises:
        ModelInvalid: There is none, or it is another class of MONAI.
    """
    network = _find_network(config)
    if network.is_monai and network.class_name not in NETWORKS:
        network.refuse(
            "a network of this class is not imported. These segment volumes, and are: " + ", ".join(sorted(NETWORKS))
        )
    return network


def check_code(network: Component) -> None:
    """Refuses a network that is made by Python of the bundle's own."""
    if not network.is_monai:
        network.refuse(
            f"{network.target} is Python of the bundle's own, which is not run. With --allow-code the network is "
            "built by it, in a process of its own"
        )


def _find_network(config: BundleConfig) -> Component:
    """The network of the evaluator, or the item with a usual name."""
    evaluator = config.resolve("evaluator")
    usual = next((key for key in ("network_def", "network") if key in config), None)
    try:
        network = evaluator.take("network") if isinstance(evaluator, Component) else None
    except ModelInvalid:
        # Python that changes how the network runs, such as torch.compile, says nothing about its class.
        if usual is None:
            raise
        network = None
    if isinstance(network, Component):
        return network
    if usual is None:
        raise config.error("network_def", "there is no network")
    return config.component(usual)


def code_module(network: Component, config: BundleConfig) -> str:
    """Returns the module of a bundle's own class, as it lies in the bundle's folder.

    Raises:
        ModelInvalid: The bundle has no such module.
    """
    module = network.target.rpartition(".")[0]
    for name in (module, f"scripts.{module}"):
        folder = name.replace(".", "/")
        if config.find_file(f"{folder}.py") or config.find_file(f"{folder}/__init__.py"):
            return name
    network.refuse(f"the bundle has no module {module}")


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
        return _CPU if value.name == "torch.device" else value.name.rpartition(".")[2].lower()
    if isinstance(value, FromCheckpoint):
        return {CHECKPOINT_FILE: value.path, KEYS: list(value.keys)}
    if isinstance(value, Component) and value.is_monai and value.class_name in PARTS:
        return {CLASS: value.class_name, ARGUMENTS: network_arguments(value)}
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
    return _PLANES if network.class_name in _PLANAR else _VOLUMES


def channel_count(network: Component, *arguments: str) -> int | None:
    """Returns the number of channels that the first of these arguments states; None if there is none of them."""
    for argument in arguments:
        if network.take(argument) is not None:
            return network.whole(argument)
    return None


def least_multiple(network: Component) -> int:
    """Returns a number of voxels of which the network takes every multiple along each axis; 1 if it is not known."""
    strides = network.take("strides")
    if isinstance(strides, list | tuple):
        each = [max(stride) if isinstance(stride, list | tuple) else stride for stride in strides]
        return prod(stride for stride in each if isinstance(stride, int))
    blocks = network.take("blocks_down", [1, 2, 2, 4])
    if network.class_name.startswith("SegResNet") and isinstance(blocks, list | tuple):
        return 1 << (len(blocks) - 1)
    return _MULTIPLES.get(network.class_name, 1)


def find_checkpoint(config: BundleConfig) -> tuple[PurePosixPath, str]:
    """Finds the file that the bundle's CheckpointLoader loads, and the name of the network in it.

    Returns:
        The path in the bundle's folder, and the name, such as model.

    Raises:
        ModelInvalid: The path leads out of the bundle.
    """
    found: dict[PurePosixPath, tuple[str, Component]] = {}
    for loader in _loaders(config):
        written = loader.text("load_path")
        path = config.find_file(written) or PurePosixPath(written)
        if path.is_absolute() or ".." in path.parts:
            loader.refuse("the checkpoint lies outside the bundle", "load_path")
        entries = loader.arguments.get("load_dict")
        names = list(entries) if isinstance(entries, Mapping) else []
        found.setdefault(path, (str(names[0]) if names else "model", loader))
    if len(found) > 1:
        first, second, *_ = found
        found[second][1].refuse(f"the config loads {second} here and {first} elsewhere: keep the one that is meant")
    for path, (name, _) in found.items():
        return path, name
    for key in _keys_of_loading_expressions(config.items, ""):
        raise config.error(key, "it loads weights by Python that is not run: load them by a CheckpointLoader instead")
    return DEFAULT_CHECKPOINT, "model"


def _loaders(config: BundleConfig) -> list[Component]:
    """The CheckpointLoaders among the evaluator's handlers, or else all of the config that are not disabled."""
    evaluator = config.resolve("evaluator")
    handlers = evaluator.take("val_handlers") if isinstance(evaluator, Component) else None
    listed = handlers if isinstance(handlers, list) else []
    own = [each for each in listed if isinstance(each, Component) and each.name == "CheckpointLoader"]
    there = [config.resolve(key) for key in _keys_of_loaders(config.items, "")]
    enabled = [each for each in there if isinstance(each, Component) and not is_disabled(each)]
    return own or enabled


def _keys_of_loading_expressions(value: Value, key: str) -> list[str]:
    """Keys of expressions that load weights without a CheckpointLoader."""
    if isinstance(value, str):
        return [key] if value.startswith("$") and "load_state_dict" in value else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [each for name, item in items for each in _keys_of_loading_expressions(item, f"{key}#{name}".strip("#"))]


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
