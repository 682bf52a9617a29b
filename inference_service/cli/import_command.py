"""The command `models import`, which installs a model from another project's files."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from inference_service.cli.display import ProgressDisplay, console, print_json, printable
from inference_service.cli.import_questions import answered
from inference_service.cli.options import import_options, json_option
from inference_service.core.settings import get_settings
from inference_service.importers.request import ImportRequest

if TYPE_CHECKING:
    from inference_service.importers.comparison import Comparison
    from inference_service.importers.model_import import Imported

_MIB = 2**20


@click.command("import")
@import_options
@json_option
def import_model(request: ImportRequest, as_json: bool) -> None:
    """Install a model from SOURCE into MODELS_PATH.

    SOURCE is nnU-Net's results folder, or the folder or zip of its data set; weights of TotalSegmentator; a MONAI
    bundle (a folder, a zip, or a TorchScript file with its configs); a TorchScript file; or an ONNX file. The networks
    are exported to ONNX and compared with PyTorch; if anything fails, nothing is installed.
    """
    from inference_service.importers.model_import import import_model as run_import

    if request.allow_code:
        _warn_of_code(console(stderr=True))
    settings = get_settings()
    interactive = sys.stdin.isatty() and sys.stderr.isatty()
    display = ProgressDisplay(console(stderr=True), {request.source: "the model"})

    def show(activity: str, share: float) -> None:
        # A source's own Python may have written it.
        display.show(request.source, printable(activity).replace("\n", " "), share)

    with answered(request, settings, interactive=interactive) as complete, display:
        imported = run_import(complete, settings, show)
    if as_json:
        print_json(imported.record)
    else:
        _print_imported(console(), imported)


def _warn_of_code(screen: Console) -> None:
    """Says loudly what --allow-code permits, and what this machine does not limit."""
    from inference_service.importers.sandbox import find_limits

    limits = find_limits()
    missing = [
        text
        for enforced, text in (
            (limits.network, "it has the NETWORK"),
            (limits.writing, "it may WRITE wherever you may"),
        )
        if not enforced
    ]
    screen.print(
        "WARNING: --allow-code runs Python that comes with the source. It may read whatever you may read, and connect "
        "to Unix sockets such as Docker's, in a process with limits on its memory, time, network and writing.",
        style="bold red",
    )
    if missing:
        screen.print(f"WARNING: this machine cannot enforce all limits: {', and '.join(missing)}.", style="bold red")


def _print_imported(screen: Console, imported: "Imported") -> None:
    taken = Table("part of the manifest", "taken from", title=imported.title, title_justify="left")
    for each in imported.model.taken:
        taken.add_row(each.what, printable(each.where))
    screen.print(taken)
    for sentence in imported.model.assumed:
        screen.print(f"assumed: {printable(sentence)}")
    for name in imported.model.code:
        screen.print(f"Python of the source was run: {printable(name)}", style="bold red")
    for network in imported.networks:
        if network.error is not None:
            screen.print(
                f"{network.file}: differs from PyTorch by {network.error:.1e} of the range of its logits "
                f"(at most {network.max_error:g})"
            )
    if imported.comparison is not None:
        _print_comparison(screen, imported.comparison)
    screen.print(f"installed: {imported.folder}")
    screen.print(f"segment a scan: {segment_command(imported.manifest.name, imported.manifest.channel_names)}")


def segment_command(model: str, channels: Sequence[str]) -> str:
    """Returns the command that segments a scan with a model, to be copied into a shell: channels have any names.

    >>> segment_command("tumour", ["T1 (Gd)", "T2"])
    "inference-service segment --channel 'T1 (Gd)=SCAN' --channel T2=SCAN mask.nii.gz --model tumour"
    """
    scans = [f"--channel {shlex.quote(f'{name}=SCAN')}" for name in channels] if len(channels) > 1 else ["SCAN"]
    return f"inference-service segment {' '.join(scans)} mask.nii.gz --model {model}"


def _print_comparison(screen: Console, comparison: "Comparison") -> None:
    screen.print(
        f"{comparison.agreement:.4%} of the voxels of {comparison.scan} have the label of the source's own predictor"
    )
    if comparison.note:
        screen.print(comparison.note)
    dice = Table("label", "Dice")
    for label, value in comparison.dice.items():
        dice.add_row(printable(label), f"{value:.4f}")
    runs = Table("predictor", "seconds", "peak memory, MiB")
    for predictor, seconds in comparison.seconds.items():
        runs.add_row(predictor, f"{seconds:.1f}", f"{comparison.peak_bytes[predictor] / _MIB:.0f}")
    screen.print(dice)
    screen.print(runs)
