"""Commands that need no servers: segment a file, run the demo or the embedded stack."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from inference_service.cli.display import ProgressDisplay, console, labels_table, print_json, timings_table
from inference_service.cli.each import each_scan, report_end
from inference_service.cli.inspection_display import inspection_json, print_inspection
from inference_service.cli.options import (
    InputArguments,
    ModelOptions,
    OutputOptions,
    each_option,
    file_options,
    input_arguments,
    input_options,
    json_option,
    model_options,
)
from inference_service.contract.input_options import InputOptions
from inference_service.contract.result_files import REPORT_FILE
from inference_service.core.errors import MixedSeries, NotAVolume
from inference_service.core.files import Sources
from inference_service.core.progress import overall_progress
from inference_service.core.settings import get_settings


def _check_target(target: Path) -> None:
    name = target.name.lower()
    if name.endswith(".gz") and not name.endswith(".nii.gz"):
        raise click.BadParameter(
            f"{target} ends in .gz: a mask's path ends in .nii or .nii.gz, and a folder's does not"
        )
    if target.is_file() and not name.endswith((".nii", ".nii.gz")):
        raise click.BadParameter(f"{target} is a file: expected a folder, or a mask's path ending in .nii or .nii.gz")


def _sources_and_target(paths: Sequence[Path], channels: Mapping[str, str]) -> tuple[Sources, Path]:
    """Splits the arguments IN and OUT, of which there is no IN beside --channel."""
    if len(paths) != (1 if channels else 2):
        raise click.UsageError("expected IN and OUT, or with --channel OUT alone")
    *sources, target = paths
    _check_target(target)
    return {name: Path(source) for name, source in channels.items()} or sources[0], target


@click.command()
@click.argument("paths", metavar="[IN] OUT", nargs=-1, type=click.Path(path_type=Path))
@model_options
@input_arguments
@file_options
@each_option
@json_option
def segment(
    paths: tuple[Path, ...],
    model: ModelOptions,
    arguments: InputArguments,
    output: OutputOptions,
    each: bool,
    as_json: bool,
) -> None:
    """Segment IN into OUT without any server, or for a model of several channels the scans of --channel.

    IN is a NIfTI, NRRD or MetaImage file, or a DICOM series in a folder, an archive or a file. For a model of
    several channels, a folder or an archive may hold one file for each, with names that end in _0000, _0001 and so on.

    OUT is a folder, which gets mask.nii.gz, report.json, preview.png and the files of --format and --scan. If OUT ends
    in .nii or .nii.gz, it is the mask's path, and the other files lie beside it: MASK.report.json, MASK.preview.png.
    Missing folders are made, and nothing is overwritten.

    With --each, IN is a folder of many scans. OUT gets a folder for each, and results.csv with all labels. Scans that
    fail are named, and the others are segmented. The same command goes on where a run was stopped.
    """
    if each:
        _segment_each(paths, model, arguments, output, as_json=as_json)
        return
    from inference_service.segmentation.local_run import segment_locally
    from inference_service.segmentation.pipeline import SegmentOptions
    from inference_service.segmentation.result_paths import ResultPaths

    sources, target = _sources_and_target(paths, arguments.channels)
    with ProgressDisplay(console(stderr=True), {target: "the scan"}) as display, _hint(sources):
        report = segment_locally(
            sources,
            target,
            get_settings(),
            model=model.model,
            version=model.model_version,
            options=SegmentOptions(arguments.options(), output.formats, output.scan),
            progress=lambda stage, share: display.show(target, stage, overall_progress(stage, share)),
        )
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    screen = console()
    screen.print(timings_table({"this file": report.timings_s}))
    screen.print(labels_table(report.labels))
    for warning in report.warnings:
        screen.print(f"warning {warning.code}: {warning.message}")
    result = ResultPaths.of(target)
    screen.print(f"{', '.join(report.files)} and {result.path(REPORT_FILE).name}: {result.folder.absolute()}")


@contextmanager
def _hint(sources: Sources) -> Iterator[None]:
    """Names the option --each if a folder is refused for holding several scans."""
    try:
        yield
    except (MixedSeries, NotAVolume):
        if isinstance(sources, Path) and sources.is_dir():
            click.echo("note: --each segments every scan of a folder", err=True)
        raise


def _segment_each(
    paths: Sequence[Path],
    model: ModelOptions,
    arguments: InputArguments,
    output: OutputOptions,
    *,
    as_json: bool,
) -> None:
    from inference_service.cohort.local_run import segment_each
    from inference_service.segmentation.local_run import LocalModel
    from inference_service.segmentation.pipeline import SegmentOptions

    if arguments.channels or len(paths) != 2:
        raise click.UsageError("with --each expected IN and OUT, and no --channel")
    folder, out = paths
    settings = get_settings()
    options = SegmentOptions(arguments.options(), output.formats, output.scan)
    chosen = LocalModel(settings, model.model, model.model_version)
    request = {
        "model": chosen.model.manifest.name,
        "model_version": chosen.model.manifest.version,
        "manifest_sha256": chosen.model.manifest_sha256,
        "formats": sorted({"nifti", *output.formats}),
        # Left out at its default, as in the journals of earlier versions.
        **({"scan": True} if output.scan else {}),
        "options": dataclasses.asdict(options.input_options),
    }
    channels = len(chosen.model.manifest.channels)
    with each_scan(folder, out, request, channels=channels, work_path=settings.usable_work_path) as run:
        segment_each(run, chosen, options, settings)
    report_end(run, as_json=as_json)


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@input_options
@json_option
def inspect(source: Path, input_options: InputOptions, as_json: bool) -> None:
    """Tell what IN holds, and whether a job would read it, without a model.

    IN is a file, an archive or a folder, as for `segment`. Each volume is read with its pixels. The exit code is 3 if a
    job with IN and these options would be refused.
    """
    from inference_service.core.host import usable_cpus
    from inference_service.core.scratch_space import scratch_folder
    from inference_service.formats.inspection import inspect_input
    from inference_service.formats.read_limits import ReadLimits
    from inference_service.formats.scan_reader import ReadOptions
    from inference_service.segmentation.local_run import check_exists

    settings = get_settings()
    check_exists(source)
    limits = ReadLimits(settings.max_voxels, settings.max_input_bytes)
    options = ReadOptions(limits, input_options, threads=settings.intra_op_threads or usable_cpus())
    with scratch_folder(settings.usable_work_path) as folder:
        found = inspect_input(source, folder, options)
    if as_json:
        print_json(inspection_json(found))
    else:
        print_inspection(console(), found)
    if found.error is not None:
        raise found.error


@click.command()
@click.option("--input", "source", type=click.Path(path_type=Path), help="A scan; default: a synthetic chest CT.")
@click.option("--model", default="ct-chest", show_default=True, help="Name of the model.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for copies of the scan and the results.",
)
def demo(source: Path | None, model: str, output: Path) -> None:
    """Run two jobs through the whole service.

    It starts embedded servers and two workers, submits an urgent and a routine job for one scan, and shows the results.
    """
    from inference_service.cli.demo import run_demo

    run_demo(source, output, model=model, screen=console())


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("stack-data"),
    show_default=True,
    help="Folder for the servers' data, logs and passwords.",
)
def stack(data: Path) -> None:
    """Run the whole service on this machine.

    It runs embedded servers and a worker of each role until Ctrl-C is pressed.
    """
    from inference_service.embedded.stack import run_stack

    run_stack(data, screen=console())


COMMANDS = (segment, inspect, demo, stack)
