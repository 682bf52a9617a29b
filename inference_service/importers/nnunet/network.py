"""The network that plans describe: its class, which must be a known one, and its arguments within bounds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from inference_service.importers.nnunet.fields import Fields, Json

NETWORKS = frozenset({"PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet"})
"""The classes of dynamic_network_architectures.architectures that are made from plans."""
OPERATORS = frozenset(
    {
        *(f"{kind}{axes}d" for kind in ("Conv", "InstanceNorm", "BatchNorm", "Dropout") for axes in (2, 3)),
        *("Dropout", "ELU", "GELU", "Hardswish", "LeakyReLU", "Mish", "PReLU", "ReLU", "SELU", "SiLU"),
    }
)
"""The classes of torch.nn that a network's arguments may name."""
BLOCKS = frozenset({"BasicBlockD", "BottleneckD"})
"""The classes of residual blocks that a network's arguments may name."""
OPERATOR_ARGUMENTS = ("conv_op", "norm_op", "dropout_op", "nonlin")
"""The arguments that name an operator."""

_MODULE = "dynamic_network_architectures.architectures.unet"
_MAX_STAGES = 16
_MAX_FEATURES = 2**13
_MAX_LAYERS = 128
_MAX_KERNEL = 64
_SIZES: Mapping[str, tuple[int, int]] = {
    "features_per_stage": (1, _MAX_FEATURES),
    "kernel_sizes": (1, _MAX_KERNEL),
    "strides": (1, _MAX_KERNEL),
    "n_conv_per_stage": (1, _MAX_LAYERS),
    "n_blocks_per_stage": (1, _MAX_LAYERS),
    "n_conv_per_stage_decoder": (1, _MAX_LAYERS),
    "bottleneck_channels": (1, _MAX_FEATURES),
    "stem_channels": (1, _MAX_FEATURES),
}
_FLAGS = ("conv_bias", "nonlin_first")
_KEYWORDS = ("norm_op_kwargs", "dropout_op_kwargs", "nonlin_kwargs")
# nnU-Net's only trainer that changes the network.
_BATCH_NORM_TRAINER = "nnUNetTrainerBN"
# The importer states it.
_LEFT_OUT = {"deep_supervision"}


@dataclass(frozen=True)
class Architecture:
    """A network.

    Attributes:
        network: A class of `NETWORKS`.
        arguments: Its arguments; operators and blocks are named without their module.
    """

    network: str
    arguments: Mapping[str, Json]

    def trained_by(self, trainer: str) -> "Architecture":
        """Returns the network that a trainer of nnU-Net makes of the one of the plans."""
        if trainer != _BATCH_NORM_TRAINER:
            return self
        normalised = {"norm_op": str(self.arguments["conv_op"]).replace("Conv", "BatchNorm")}
        return replace(
            self, arguments={**self.arguments, **normalised, "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
        )


def read_architecture(configuration: Fields, dimensions: int) -> Architecture:
    """Reads the network of a configuration, in plans of any version.

    Args:
        configuration: The configuration.
        dimensions: Axes of its windows, which state the operators in plans of older versions.

    Raises:
        ModelInvalid: It has no network, one of an unknown class, or numbers out of bounds.
    """
    if "architecture" not in configuration:
        return _older(configuration, dimensions)
    architecture = configuration.child("architecture")
    return Architecture(_network(architecture, "network_class_name"), _arguments(architecture.child("arch_kwargs")))


def _older(configuration: Fields, dimensions: int) -> Architecture:
    """The network of plans before version 2.4, whose other arguments were fixed."""
    network = _network(configuration, "UNet_class_name")
    convolutions = configuration.wholes("n_conv_per_stage_encoder", 1, _MAX_LAYERS)
    first = configuration.whole("UNet_base_num_features", 1, _MAX_FEATURES)
    most = configuration.whole("unet_max_num_features", 1, _MAX_FEATURES)
    stages = len(convolutions)
    if not 1 <= stages <= _MAX_STAGES:
        configuration.refuse("n_conv_per_stage_encoder", f"expected 1 to {_MAX_STAGES} stages, got {stages}")
    layers = "n_conv_per_stage" if network == "PlainConvUNet" else "n_blocks_per_stage"
    features: list[Json] = [min(first * 2**stage, most) for stage in range(stages)]
    return Architecture(
        network,
        {
            "n_stages": stages,
            "features_per_stage": features,
            "conv_op": f"Conv{dimensions}d",
            "kernel_sizes": configuration.sizes("conv_kernel_sizes", 1, _MAX_KERNEL),
            "strides": configuration.sizes("pool_op_kernel_sizes", 1, _MAX_KERNEL),
            layers: list(convolutions),
            "n_conv_per_stage_decoder": configuration.sizes("n_conv_per_stage_decoder", 1, _MAX_LAYERS),
            "conv_bias": True,
            "norm_op": f"InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "nonlin": "LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
    )


def _network(fields: Fields, key: str) -> str:
    written = fields.text(key)
    module, _, name = written.rpartition(".")
    # A class of this name elsewhere may be another network. Older plans state no module.
    if name not in NETWORKS or module not in ("", _MODULE):
        fields.refuse(key, f"a network of the class {written[:200]} is not imported; known ones: {_listed(NETWORKS)}")
    return name


def _arguments(fields: Fields) -> dict[str, Json]:
    arguments: dict[str, Json] = {"n_stages": fields.whole("n_stages", 1, _MAX_STAGES)}
    for key, value in fields.values.items():
        if key in _LEFT_OUT or key in arguments:
            continue
        if key in OPERATOR_ARGUMENTS:
            arguments[key] = None if value is None else _class(fields, key, "torch.nn.", OPERATORS)
        elif key == "block":
            arguments[key] = _class(fields, key, "dynamic_network_architectures.", BLOCKS)
        elif key in _SIZES:
            arguments[key] = None if value is None else fields.sizes(key, *_SIZES[key])
        elif key in _FLAGS:
            arguments[key] = fields.flag(key, False)
        elif key in _KEYWORDS:
            arguments[key] = None if value is None else _keywords(fields.child(key))
        else:
            fields.refuse(key, "an argument of this name is not known")
    return arguments


def _class(fields: Fields, key: str, module: str, known: frozenset[str]) -> str:
    written = fields.text(key)
    name = written.rpartition(".")[2]
    if not written.startswith(module) or name not in known:
        fields.refuse(key, f"{written[:200]} is not used; known ones of {module[:-1]}: {_listed(known)}")
    return name


def _keywords(fields: Fields) -> dict[str, Json]:
    for key, value in fields.values.items():
        if not (value is None or isinstance(value, bool)):
            fields.number(key)
    return dict(fields.values)


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
