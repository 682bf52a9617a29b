"""A short config for a network that comes without a description: any fields of a manifest, completed here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from inference_service.core.errors import InputNotFound, ModelInvalid
from inference_service.importers.isolation import Isolation
from inference_service.importers.sources import LabelChoice

_MAX_BYTES = 2**20
_AXES = 3
_USUAL_VOXELS = 96
# What the import itself states.
_OWN = ("name", "version", "licence", "sha256", "networks", "parts")


@dataclass(frozen=True)
class Signature:
    """What is known of a network's input and output.

    Attributes:
        channels: Input channels; None: not known.
        outputs: Output channels; None: not known.
        window: Spatial size of the input, None along free axes; None: not known.
        labels: Names of the outputs, if the file has them.
        plane: For a network for planes, whose window has one voxel along the axis that its input lacks: the size of a
            plane, None along free axes.
    """

    channels: int | None
    outputs: int | None
    window: Sequence[int | None] | None
    labels: Sequence[str] = ()
    plane: Sequence[int | None] | None = None


class Describes(Protocol):
    """An importer of networks that come without a description."""

    def describe(self, source: Path, isolation: Isolation, window: Sequence[int | None] | None = None) -> Signature:
        """Returns what a source says about its network.

        Args:
            source: The source.
            isolation: Where its file is read.
            window: The size of a window, if it is known by now.
        """


def draft(signature: Signature) -> dict[str, object]:
    """Returns a short config to fill in: all that is known of a network, and a usual value for all else."""
    channels = _channel_names(signature) or ["image"]
    # Most often, planes lie across the last axis.
    known = [*signature.plane, 1] if signature.plane else signature.window
    window: list[int | None] = list(known) if known else [_USUAL_VOXELS] * _AXES
    outputs = signature.outputs or len(signature.labels) or 2
    activation = "sigmoid" if outputs == 1 else "softmax"
    labels, _ = _labels(replace(signature, outputs=outputs), activation)
    return {
        "modality": "other",
        "channels": [{"name": name, "intensity": {"kind": "none"}} for name in channels],
        "orientation": "RAS",
        "spacing_mm": [None] * _AXES,
        "window": window,
        "activation": activation,
        "labels": labels,
    }


def read_short_config(path: Path | None) -> dict[str, object]:
    """Reads a short config; an empty one if there is no file.

    Raises:
        InputNotFound: There is no such file.
        ModelInvalid: It is no JSON object, or has a field that the import itself states.
    """
    if path is None:
        return {}
    if not path.is_file():
        raise InputNotFound(f"there is no config {path.name}")
    if path.stat().st_size > _MAX_BYTES:
        raise ModelInvalid(f"{path.name} has more than {_MAX_BYTES} bytes, which is the most that is read")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelInvalid(f"{path.name} is not valid JSON") from error
    if not isinstance(config, dict):
        raise ModelInvalid(f"{path.name} has no object at its top level")
    for field in _OWN:
        if field in config:
            raise ModelInvalid(f"{path.name}, {field}: the import itself states this field")
    return config


def complete(
    config: Mapping[str, object], signature: Signature, given: LabelChoice | None
) -> tuple[dict[str, object], list[str]]:
    """Completes a short config to the fields of a manifest.

    Args:
        config: The fields that are stated.
        signature: What is known of the network.
        given: Labels that take the place of the config's.

    Returns:
        The fields, and sentences on what was assumed.

    Raises:
        ModelInvalid: Neither the config nor the network says how large a window is, or how many channels there are; or
            they contradict one another.
    """
    if given is not None:
        config = {field: value for field, value in config.items() if field not in ("labels", "outputs")}
    fields: dict[str, object] = {}
    assumed: list[str] = []

    def assume(field: str, value: object, sentence: str) -> None:
        if field not in config:
            fields[field] = value
            assumed.append(sentence)

    window = _window(config, signature)
    if "channels" not in config and signature.channels is None:
        raise ModelInvalid("the network does not say how many channels its input has: state `channels` in --config")
    plain = [{"name": name, "intensity": {"kind": "none"}} for name in _channel_names(signature)]
    assume("channels", plain, "The values of the scan reach the network as they are.")
    assume("orientation", "RAS", "The network's axes run to the right, to the front and up (RAS).")
    assume("spacing_mm", [None] * _AXES, "The network takes any spacing.")
    assume("modality", "other", "The modality is not known.")
    outputs = signature.outputs
    activation = "sigmoid" if outputs == 1 else "softmax"
    assume("activation", activation, f"The label is decided by {activation}.")
    if given is not None:
        fields |= {"labels": [label.model_dump(exclude_none=True) for label in given.labels]}
        if given.outputs:
            fields["outputs"] = [output.model_dump(exclude_unset=True) for output in given.outputs]
    elif "labels" not in config:
        labels, sentence = _labels(signature, str(config.get("activation", activation)))
        assume("labels", labels, sentence)
    _require_count({**fields, **config}, signature)
    fields.setdefault("description", "A network from a file.")
    fields.setdefault("intended_use", "Not stated by the source. Not a medical device.")
    return {**fields, **config, "window": window}, assumed


def _require_count(fields: Mapping[str, object], signature: Signature) -> None:
    """Checks that there is a label for each output of the network, unless `outputs` maps the one to the other.

    Raises:
        ModelInvalid: There are more or fewer.
    """
    labels = fields.get("labels")
    if fields.get("outputs") or not isinstance(labels, list) or signature.outputs is None:
        return
    if len(labels) != signature.outputs:
        raise ModelInvalid(
            f"the config states {len(labels)} labels, and the network has {signature.outputs} output channels: "
            "state each label, or map channels to labels by `outputs`"
        )


def _channel_names(signature: Signature) -> list[str]:
    return ["image"] if signature.channels == 1 else [f"channel {n}" for n in range(signature.channels or 0)]


def _window(config: Mapping[str, object], signature: Signature) -> list[object]:
    stated = config.get("window", signature.window)
    if not isinstance(stated, Sequence) or isinstance(stated, str) or len(stated) != _AXES:
        raise ModelInvalid(
            "the network does not say how large its windows are: state `window` in --config, three sizes, null for an "
            "axis of any size, and 1 along the axis that a network for planes lacks"
        )
    return list(stated)


def _labels(signature: Signature, activation: str) -> tuple[list[dict[str, object]], str]:
    if signature.outputs is None:
        raise ModelInvalid("the network does not say how many labels it has: state `labels` in --config")
    first = 1 if activation == "sigmoid" else 0
    names = list(signature.labels)
    if len(names) != signature.outputs:
        names = ["background" if n + first == 0 else f"label {n + first}" for n in range(signature.outputs)]
        sentence = "The labels are numbered: the source does not name them."
    else:
        sentence = "The names of the labels are those in the ONNX file."
    return [{"name": name, "value": number + first} for number, name in enumerate(names)], sentence
