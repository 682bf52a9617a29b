"""Commands for one machine alone: segment a file, look at the models, run the demo or the stack."""

from pathlib import Path
from typing import get_args

import click
from rich.table import Table

from inference_service.cli.display import ProgressDisplay, console, labels_table, print_json, timings_table
from inference_service.cli.job_commands import format_option, input_options, json_option
from inference_service.contract.task_message import OutputFormat, Tolerance
from inference_service.core.execution import Precision
from inference_service.core.progress import overall_progress
from inference_service.core.settings import get_settings


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="Name of the model.")
@click.option("--model-version", help="Version of the model; the highest installed otherwise.")
@input_options
@format_option
@json_option
def segment(
    source: Path,
    target: Path,
    model: str,
    model_version: str | None,
    series: str | None,
    tolerate: tuple[Tolerance, ...],
    modality_check: bool,
    formats: tuple[OutputFormat, ...],
    as_json: bool,
) -> None:
    """Segment IN into OUT without any server.

    IN is a NIfTI file, or a DICOM series in a folder, a zip or a file.

    OUT is a folder, which gets mask.nii.gz, report.json, preview.png and the files of --format. If OUT ends in .nii or
    .nii.gz, it is the mask's path, and the other files lie beside it: MASK.report.json, MASK.preview.png. Missing
    folders are made, and nothing is overwritten.
    """
    from inference_service.contract.input_options import InputOptions
    from inference_service.contract.result_files import REPORT_FILE
    from inference_service.segmentation.local_run import ResultPaths, segment_locally

    with ProgressDisplay(console(stderr=True), {source: "the scan"}) as display:
        report = segment_locally(
            source, target, get_settings(), model=model, version=model_version,
            input_options=InputOptions(series, tolerate, modality_check), formats=formats,
            progress=lambda stage, share: display.show(source, stage, overall_progress(stage, share)),
        )  # fmt: skip
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    screen = console()
    screen.print(timings_table({"this file": report.timings_s}))
    screen.print(labels_table(report.labels))
    for warning in report.warnings:
        screen.print(f"warning: {warning}")
    paths = ResultPaths.of(target)
    screen.print(f"{', '.join(report.files)} and {paths.path(REPORT_FILE).name}: {paths.folder}")


@click.group()
def models() -> None:
    """Look at the installed models."""


@models.command("list")
@json_option
def list_models(as_json: bool) -> None:
    """List the installed models."""
    from inference_service.engine.model_registry import list_models as find_all
    from inference_service.engine.model_registry import read_model

    found = [read_model(folder).manifest for folder in find_all(get_settings().models_path)]
    if as_json:
        print_json([manifest.model_dump(mode="json") for manifest in found])
        return
    table = Table("name", "version", "modality", "labels", "description")
    for manifest in found:
        labels = ", ".join(label.name for label in manifest.labels)
        table.add_row(manifest.name, manifest.version, manifest.modality, labels, manifest.description)
    console().print(table)


@models.command()
@click.argument("name")
@click.argument("version", required=False)
@click.option("--json", is_flag=True, expose_value=False, help="Print JSON, which a manifest is anyway.")
def show(name: str, version: str | None) -> None:
    """Print a model's manifest."""
    from inference_service.engine.model_registry import find_model

    print_json(find_model(get_settings().models_path, name, version).manifest.model_dump(mode="json"))


_REDUCED = [precision for precision in get_args(Precision) if precision != "fp32"]


@models.command()
@click.argument("name")
@click.argument("version", required=False)
@click.option("--precision", type=click.Choice(_REDUCED), help="Compare it with fp32 on the volume.")
@click.option("--volume", type=click.Path(path_type=Path), help="A scan to compare on.")
@json_option
def verify(name: str, version: str | None, precision: Precision | None, volume: Path | None, as_json: bool) -> None:
    """Load a model, check it against its manifest and run one window.

    With --precision and --volume, segment the volume in that precision and in fp32 too, and tell how far they agree.
    """
    if (precision is None) != (volume is None):
        raise click.UsageError("--precision and --volume go together")
    from inference_service.segmentation.local_run import compare_precisions, verify_model

    settings = get_settings()
    verified = verify_model(settings, name, version)
    if precision is not None and volume is not None:
        verified |= compare_precisions(settings, name, version, precision=precision, source=volume)
    if as_json:
        print_json(verified)
    else:
        for key, value in verified.items():
            click.echo(f"{key}: {value}")


@click.command()
@click.option("--input", "source", type=click.Path(path_type=Path), help="A scan; a synthetic chest CT otherwise.")
@click.option("--model", default="ct-chest", show_default=True, help="Name of the model.")
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=Path("demo-output"), show_default=True
)
def demo(source: Path | None, model: str, output: Path) -> None:
    """Run the main job on embedded servers: queue, workers, model and back."""
    from inference_service.cli.demo import run_demo

    run_demo(source, output, model=model, screen=console())


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), default=Path("stack-data"), show_default=True,
    help="Folder of the servers' data, logs and passwords.",
)  # fmt: skip
def stack(data: Path) -> None:
    """Run embedded servers and a worker of each role until Ctrl-C."""
    from inference_service.embedded.stack import run_stack

    run_stack(data, screen=console())


COMMANDS = (segment, models, demo, stack)
