"""The labels and channels of a bundle, from its metadata.json and its config."""

from collections.abc import Mapping, Sequence

from inference_service.core.errors import ModelInvalid
from inference_service.importers.monai.config_file import look_up
from inference_service.importers.monai.postprocessing import Decision
from inference_service.importers.monai.values import Value
from inference_service.importers.sources import LabelChoice

_MAX_NAME = 64
METADATA_FILE = "metadata.json"
_OUTPUT = ("network_data_format", "outputs", "pred")
_INPUT = ("network_data_format", "inputs", "image")
_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT", "US": "US"}


def check_counts(
    metadata: Mapping[str, Value], *, inputs: int | None, outputs: int | None, labels_given: bool = False
) -> tuple[int, int]:
    """Compares the numbers of channels in metadata.json with the network's.

    The names of input channels may be fewer: then the channels are numbered.

    Args:
        metadata: Content of metadata.json.
        labels_given: Whether labels take the place of those of metadata.json.
        inputs: Input channels of the network; None: the config does not say.
        outputs: Output channels of the network; None: the config does not say.

    Returns:
        The numbers of input and output channels.

    Raises:
        ModelInvalid: They contradict each other, or neither says.
    """
    found = []
    for place, definition, stated in ((_INPUT, "channel_def", inputs), (_OUTPUT, "channel_def", outputs)):
        count = look_up(metadata, *place, "num_channels")
        names = look_up(metadata, *place, definition) if place is _OUTPUT else None
        counts = {
            "the network": stated,
            f"{METADATA_FILE}, {'#'.join(place)}#num_channels": count if isinstance(count, int) else None,
            f"{METADATA_FILE}, {'#'.join(place)}#{definition}": len(names) if isinstance(names, Mapping) else None,
        }
        if stated is not None and place is _OUTPUT and labels_given:
            counts = {"the network": stated}
        known = {where: number for where, number in counts.items() if number is not None}
        if len(set(known.values())) > 1:
            listed = "; ".join(f"{where}: {number}" for where, number in known.items())
            way_out = "; give labels by --labels FILE" if place is _OUTPUT and stated is not None else ""
            raise ModelInvalid(f"the numbers of {place[1]} contradict each other: {listed}{way_out}")
        if not known:
            raise ModelInvalid(f"neither the network nor {METADATA_FILE} says how many {place[1]} there are")
        found.append(next(iter(known.values())))
    return found[0], found[1]


def channel_names(metadata: Mapping[str, Value], count: int) -> list[str]:
    """Returns the names of the input channels; numbered ones where metadata.json has none."""
    names = _numbered(look_up(metadata, *_INPUT, "channel_def"), count)
    if names is None or len(set(names)) < count:
        return ["image"] if count == 1 else [f"channel {number}" for number in range(count)]
    return names


def modality(metadata: Mapping[str, Value]) -> str:
    """Returns the modality of the input, `other` where metadata.json has none that is known."""
    stated = str(look_up(metadata, *_INPUT, "modality") or "").upper()
    return _MODALITIES.get(stated, "other")


def label_fields(
    metadata: Mapping[str, Value],
    config_labels: Value,
    outputs: int,
    decision: Decision,
    given: LabelChoice | None,
) -> tuple[dict[str, object], str]:
    """Returns the fields `labels` and `outputs` of the manifest, and where the names come from.

    Args:
        metadata: Content of metadata.json.
        config_labels: The item `labels` of the config; None: there is none.
        outputs: Output channels of the network.
        decision: How labels are decided.
        given: Labels that take the place of the bundle's; None: none.

    Raises:
        ModelInvalid: The bundle does not say what its channels mean, or their number contradicts the labels given.
    """
    if given is not None:
        return _given(given, outputs, decision), "--labels"
    if decision.final_activation == "sigmoid" and outputs > 1:
        raise ModelInvalid(
            f"the {outputs} output channels of a sigmoid may overlap, and the bundle does not say which one counts "
            "where they do: give labels and the order of the channels by --labels FILE"
        )
    names, where = _names(metadata, config_labels, outputs)
    if decision.final_activation == "sigmoid":
        value = decision.values.get(1, 1)
        output = {"channel": 0, "value": value, "threshold": decision.probability}
        return {"labels": [{"name": names[0], "value": value}], "outputs": [output]}, where
    labels: dict[int, str] = {}
    for channel, name in enumerate(names):
        value = decision.value(channel)
        labels.setdefault(value, "background" if value == 0 else name)
    return {
        "labels": [{"name": name, "value": value} for value, name in sorted(labels.items())],
        "outputs": [{"channel": channel, "value": decision.value(channel)} for channel in range(outputs)],
    }, where


def _given(given: LabelChoice, outputs: int, decision: Decision) -> dict[str, object]:
    chosen = [output.model_dump(exclude_unset=True) for output in given.outputs] or [
        {"channel": channel, "value": label.value} for channel, label in enumerate(given.labels)
    ]
    if len(chosen) != outputs:
        raise ModelInvalid(f"--labels describes {len(chosen)} output channels; the network has {outputs}")
    if decision.final_activation == "sigmoid":
        for output in chosen:
            output.setdefault("threshold", decision.probability)
    return {"labels": [label.model_dump(exclude_none=True) for label in given.labels], "outputs": chosen}


def _names(metadata: Mapping[str, Value], config_labels: Value, outputs: int) -> tuple[list[str], str]:
    for definition in ("channel_def", "label_def"):
        names = _numbered(look_up(metadata, *_OUTPUT, definition), outputs)
        if names is not None:
            return _unique(names), f"{METADATA_FILE}, {'#'.join(_OUTPUT)}#{definition}"
    if isinstance(config_labels, Mapping):
        names = _numbered({str(value): name for name, value in config_labels.items()}, outputs) or _numbered(
            config_labels, outputs
        )
        if names is not None:
            return _unique(names), "labels of the config"
    raise ModelInvalid(
        f"the bundle does not name its {outputs} labels (network_data_format#outputs#pred#channel_def of "
        f"{METADATA_FILE}): give them by --labels FILE"
    )


def _numbered(names: Value, count: int) -> list[str] | None:
    """The names of an object with the keys 0 to count - 1; None if it is anything else."""
    if not isinstance(names, Mapping) or {str(key) for key in names} != {str(number) for number in range(count)}:
        return None
    by_number = {str(key): str(name).replace("\\", "/").strip()[:_MAX_NAME] for key, name in names.items()}
    listed = [by_number[str(number)] for number in range(count)]
    return listed if all(listed) else None


def _unique(names: Sequence[str]) -> list[str]:
    """Adds the channel's number to names that occur twice."""
    return [
        name if list(names).count(name) == 1 else f"{name[: _MAX_NAME - 6]} {number}"
        for number, name in enumerate(names)
    ]
