"""The whole of an import: from a source to an installed model, or to nothing at all."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path

from pydantic import ValidationError

from inference_service.contract.manifest import MANIFEST_FILE, Manifest
from inference_service.contract.task_message import NAME_PATTERN, VERSION_PATTERN
from inference_service.contract.validation import first_problem
from inference_service.core.errors import BadRequest, ModelInvalid
from inference_service.core.scratch_space import scratch_folder
from inference_service.core.settings import Settings
from inference_service.engine.model_folder import install, staging
from inference_service.engine.model_registry import CARD_FILE, Model, find_model, read_model
from inference_service.importers.card import write_card
from inference_service.importers.comparison import Comparison, compare
from inference_service.importers.isolation import Isolation, Progress, missing_package
from inference_service.importers.networks import ExportedNetwork, export_network, with_checksums
from inference_service.importers.registry import NNUNET_TASK, find_importer
from inference_service.importers.request import ImportRequest, SourceOptions
from inference_service.importers.sandbox import find_limits
from inference_service.importers.source_files import hash_source, opened_source
from inference_service.importers.sources import ImportedModel, Importer, ImportOptions, LabelChoice
from inference_service.segmentation.crop_models import CropModels

IMPORT_FILE = "import.json"
_PACKAGES = ("torch", "onnx", "yaml")
_NO_SHA256 = "0" * 64
_MAX_LABELS_BYTES = 2**20
_OPTIONS_OF_ALL = ("scratch", "modality", "models_path", "time_limit_s")
# The share of the whole at which the source is read, and at which its networks are exported if a comparison follows.
_READ = 0.05
_EXPORTED = 0.4


@dataclass(frozen=True)
class Imported:
    """An installed model.

    Attributes:
        folder: Its folder.
        manifest: Its manifest.
        model: What was read from the source.
        networks: Its networks.
        comparison: The comparison with the source's own predictor; None: none was made.
        record: The content of its import.json.
    """

    folder: Path
    manifest: Manifest
    model: ImportedModel
    networks: Sequence[ExportedNetwork]
    comparison: Comparison | None
    record: Mapping[str, object]

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.manifest.name} {self.manifest.version}"


def import_model(request: ImportRequest, settings: Settings, progress: Progress) -> Imported:
    """Imports a model into the folder of all models. If anything fails, nothing is written.

    Args:
        request: What is imported.
        settings: The folder of all models, and that for temporary files.
        progress: Called for each step, with the share of the whole that is done.

    Raises:
        BadRequest: This version is installed already, or the request lacks something.
        ModelInvalid: The source is damaged, or has what a manifest cannot say.
        TimeLimit: A step took longer than the request allows.
        ConfigurationError: A package of the extra `import` is missing, or the models are those of the package.
        ServiceError: See the importers, and `Isolation.run`.
    """
    _require_packages()
    _require_identity(request)
    target = settings.own_models_path / request.name / request.version
    if target.exists():
        raise BadRequest(f"model {request.name} has a version {request.version} already; choose another --version")
    with scratch_folder(settings.usable_work_path) as scratch, staging(settings.models_path) as staged:
        progress("reading all files", 0.0)
        with opened_source(request.source, scratch) as opened:
            # First, because it finds files that cannot be read.
            source_sha256 = hash_source(request.source)
            progress("reading the source", _READ)
            importer, source = find_importer(opened, task=request.task)
            if request.task == NNUNET_TASK:
                request = replace(request, task=None)
            options = _options(request, scratch, settings.models_path)
            _require_taken(options, importer)
            model = importer.read(source, options)
            _require_reference(request, model)
            fields = _fields(request, model)
            _validated(_with_placeholders(fields, model), request.config)
            folder = staged / request.name / request.version
            folder.mkdir(parents=True)
            networks = _export(model, folder, options.isolation, request, progress)
            complete = with_checksums(fields, networks)
            manifest = _validated(complete, request.config)
            (folder / MANIFEST_FILE).write_text(_json(complete))
            progress("loading the model", _EXPORTED if request.compare else 1.0)
            options.isolation.run("check_model", {"folder": str(folder.resolve())})
            crop_models = CropModels.of(read_model(folder), partial(find_model, settings.models_path)).models
            _link(crop_models, staged)
            comparison = _compare(request, model, manifest, staged, options.isolation, progress)
        described = {"name": request.source.name, "kind": model.kind, "sha256": source_sha256}
        record = _record(described, model, networks, comparison, crop_models)
        (folder / IMPORT_FILE).write_text(_json(record))
        (folder / CARD_FILE).write_text(write_card(manifest, model, networks, described, comparison, crop_models))
        install(folder, target)
    progress("installed", 1.0)
    return Imported(target, manifest, model, networks, comparison, record)


def read_labels(path: Path) -> LabelChoice:
    """Reads the file of `--labels`.

    Raises:
        BadRequest: There is no such file, or its content is invalid.
    """
    if not path.is_file() or path.stat().st_size > _MAX_LABELS_BYTES:
        raise BadRequest(f"{path.name} is no file with labels")
    try:
        return LabelChoice.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BadRequest(f"{path.name} is invalid at {first_problem(error)}") from error


def _require_packages() -> None:
    for name in _PACKAGES:
        if find_spec(name) is None:
            raise missing_package(name)


def _require_identity(request: ImportRequest) -> None:
    """Raises BadRequest for a name or version that no model can have."""
    if not re.fullmatch(NAME_PATTERN, request.name):
        raise BadRequest(
            "--name: expected lower-case letters, digits, - and _, at most 64, beginning with one of the former"
        )
    if not re.fullmatch(VERSION_PATTERN, request.version):
        raise BadRequest("--version: expected one to three numbers with dots, such as 1 or 2.0.1")


def _options(request: ImportRequest, scratch: Path, models_path: Path) -> ImportOptions:
    shared = {each.name: getattr(request, each.name) for each in dataclasses.fields(SourceOptions)}
    labels = None if request.labels is None else read_labels(request.labels)
    return ImportOptions(scratch, labels, models_path, **shared)


def _require_taken(options: ImportOptions, importer: Importer) -> None:
    """Raises BadRequest for an option that the source would ignore."""
    for field in dataclasses.fields(options):
        taken = field.name in (*_OPTIONS_OF_ALL, *importer.options)
        if not taken and getattr(options, field.name) != field.default:
            name = ("no-" if field.default is True else "") + field.name.replace("_", "-")
            raise BadRequest(f"a source of the kind {importer.kind} takes no --{name}")


def _fields(request: ImportRequest, model: ImportedModel) -> dict[str, object]:
    licence = request.licence or model.licence
    if licence is None:
        raise BadRequest("the source states no licence that is known: give --licence, such as Apache-2.0")
    asked: dict[str, object] = {"modality": request.modality} if request.modality else {}
    if request.bf16:
        asked |= {"precisions": ["fp32", "bf16"]}
    fields = {"name": request.name, "version": request.version, "licence": licence, **model.manifest, **asked}
    if fields.get("modality") == "CT":
        # Other software counts values below air as they are.
        fields.setdefault("air_floor", False)
    return fields


def _with_placeholders(fields: Mapping[str, object], model: ImportedModel) -> dict[str, object]:
    """The fields as they will be, so that they are checked before a network is exported."""
    return with_checksums(fields, [ExportedNetwork(network.file, _NO_SHA256) for network in model.networks])


def _validated(fields: Mapping[str, object], config: Path | None) -> Manifest:
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        origin = "the source" if config is None else f"{config.name} and the source"
        raise ModelInvalid(f"the manifest that follows from {origin} is invalid at {first_problem(error)}") from error


def _export(
    model: ImportedModel, folder: Path, isolation: Isolation, request: ImportRequest, progress: Progress
) -> list[ExportedNetwork]:
    share = ((_EXPORTED if request.compare else 1.0) - _READ) / len(model.networks)
    return [
        export_network(
            network,
            folder,
            isolation,
            float16=request.float16,
            progress=_part_of(progress, _READ + share * number, share),
        )
        for number, network in enumerate(model.networks)
    ]


def _link(crop_models: Sequence[Model], staged: Path) -> None:
    """Puts links to the installed models that crop the new one's scans beside it."""
    for model in crop_models:
        link = staged / model.manifest.name / model.manifest.version
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(model.folder.resolve())


def _part_of(progress: Progress, start: float, share: float) -> Progress:
    """A `Progress` for a part of the whole."""
    return lambda step, done: progress(step, start + share * done)


def _require_reference(request: ImportRequest, model: ImportedModel) -> None:
    """Raises BadRequest if a comparison is asked for that cannot be made."""
    if request.compare and model.reference is None:
        raise BadRequest(f"a {model.kind} has no predictor of its own to compare with")


def _compare(
    request: ImportRequest,
    model: ImportedModel,
    manifest: Manifest,
    models_path: Path,
    isolation: Isolation,
    progress: Progress,
) -> Comparison | None:
    if not request.compare or model.reference is None:
        return None
    part = _part_of(progress, _EXPORTED, 1 - _EXPORTED)
    return compare(model.reference, manifest, models_path, request.compare, isolation, part)


def _record(
    source: Mapping[str, str],
    model: ImportedModel,
    networks: Sequence[ExportedNetwork],
    comparison: Comparison | None,
    crop_models: Sequence[Model],
) -> dict[str, object]:
    """The record of an import."""
    return {
        "source": source,
        "imported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "inference_service": installed_version("inference-service"),
        "networks": [asdict(network) for network in networks],
        "crop_models": [
            {"name": each.manifest.name, "version": each.manifest.version, "manifest_sha256": each.manifest_sha256}
            for each in crop_models
        ],
        "taken": [asdict(each) for each in model.taken],
        "assumed": list(model.assumed),
        "stated_dice": None if model.stated_dice is None else asdict(model.stated_dice),
        "comparison": None if comparison is None else asdict(comparison),
        "code": {"run": list(model.code), **asdict(find_limits())} if model.code else None,
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
