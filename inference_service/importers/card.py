"""The README of an imported model: its card."""

import re
from collections.abc import Mapping, Sequence

from inference_service.contract.manifest import Manifest
from inference_service.engine.model_registry import Model
from inference_service.importers.comparison import Comparison
from inference_service.importers.networks import ExportedNetwork
from inference_service.importers.sources import ImportedModel, StatedDice

_MARKUP = re.compile(r"[\[\]<>|`]")


def write_card(
    manifest: Manifest,
    model: ImportedModel,
    networks: Sequence[ExportedNetwork],
    source: Mapping[str, str],
    comparison: Comparison | None,
    crop_models: Sequence[Model],
) -> str:
    """Returns the card of a model, as Markdown.

    Args:
        manifest: The model's manifest.
        model: What was read from the source.
        networks: The exported networks.
        source: Name and sha256 of the source.
        comparison: The comparison with the source's own predictor; None: none was made.
        crop_models: The installed models to whose labels the scan is cropped.
    """
    labels = [f"| {label.value} | {_one_line(label.name)} |" for label in manifest.labels]
    taken = [f"| {each.what} | {_one_line(each.where)} |" for each in model.taken]
    lines = [
        f"# {manifest.name} {manifest.version}",
        "",
        _one_line(manifest.description),
        "",
        f"Imported from {_one_line(source['name'])} ({model.kind}), sha256 `{source['sha256']}`.",
        "",
        f"- Licence: {manifest.licence}",
        f"- Modality: {manifest.modality}",
        f"- Channels: {', '.join(_one_line(channel.name) for channel in manifest.channels)}",
        *(f"- Crops scans to the labels of: {each.title}, which must be installed" for each in crop_models),
        *(f"- {heading}: {_one_line(text)}" for heading, text in model.facts.items()),
        "",
        "## Labels",
        "",
        "| value | name |",
        "|---|---|",
        *labels,
        "",
        "## Sources of the manifest",
        "",
        "| part of the manifest | source |",
        "|---|---|",
        *taken,
        "",
        *_code(model),
        *_stated_dice(model.stated_dice),
        "## Assumptions",
        "",
        *([f"- {each}" for each in model.assumed] or ["Nothing."]),
        "",
        "## Agreement with the source",
        "",
        *(f"- {_agreement(network)}" for network in networks),
        *([] if comparison is None else [f"- {_compared(comparison)}"]),
        "",
    ]
    return "\n".join(lines)


def _code(model: ImportedModel) -> list[str]:
    """The section on Python of the source that was run."""
    if not model.code:
        return []
    ran = [f"- `{name}` built the network, as --allow-code permitted." for name in model.code]
    return ["## Python of the source that was run", "", *ran, ""]


def _stated_dice(stated: StatedDice | None) -> list[str]:
    """The section on the accuracy that the source claims."""
    if stated is None:
        return []
    mean = {} if stated.mean is None else {"mean": stated.mean}
    return [
        "## Dice in cross-validation, as the source states it",
        "",
        f"From {_one_line(stated.where)}. This service has not measured it.",
        "",
        "| label | Dice |",
        "|---|---|",
        *(f"| {_one_line(name)} | {dice:.4f} |" for name, dice in {**stated.labels, **mean}.items()),
        "",
    ]


def _agreement(network: ExportedNetwork) -> str:
    if network.error is None:
        return f"{network.file} is the source's own file."
    return (
        f"{network.file}: ONNX Runtime differs from PyTorch by {network.error:.1e} of the range of the logits on "
        f"random windows (opset {network.details.get('opset')})."
    )


def _compared(comparison: Comparison) -> str:
    dice = [f"{_one_line(name)} {value:.4f}" for name, value in comparison.dice.items()]
    return (
        f"On {_one_line(comparison.scan)}, {comparison.agreement:.4%} of the voxels have the label that the source's "
        f"own predictor gives them. Dice: {', '.join(dice) or 'no label occurs'}."
    )


def _one_line(text: str) -> str:
    """Text of a source as one line in which no character makes a table's cell, a link or HTML."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(text.split()))
