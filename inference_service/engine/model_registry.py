"""Finds, reads and verifies the models on disk: `<models path>/<name>/<version>/{manifest.json,model.onnx}`.

`session_cache` loads their networks.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from inference_service.contract.manifest import Manifest
from inference_service.contract.task_message import NAME_PATTERN, VERSION_PATTERN
from inference_service.core.errors import ModelInvalid, ModelNotFound

MANIFEST_FILE = "manifest.json"
NETWORK_FILE = "model.onnx"


@dataclass(frozen=True)
class Model:
    """An installed model.

    Attributes:
        manifest: The content of the model's manifest.json.
        manifest_sha256: SHA-256 of manifest.json.
        folder: The folder of the model's files.
    """

    manifest: Manifest
    manifest_sha256: str
    folder: Path

    def read_network(self) -> bytes:
        """Reads the ONNX file and verifies its sha256. The caller loads these bytes, not the file, which may change.

        Raises:
            ModelInvalid: The file is missing, or its sha256 differs from the manifest.
        """
        try:
            network = (self.folder / NETWORK_FILE).read_bytes()
        except OSError as error:
            raise ModelInvalid(f"model {_title(self.manifest)} has no readable {NETWORK_FILE}") from error
        digest = hashlib.sha256(network).hexdigest()
        if digest != self.manifest.sha256:
            raise ModelInvalid(
                f"model {_title(self.manifest)}: expected sha256 {self.manifest.sha256} of {NETWORK_FILE}, got {digest}"
            )
        return network


def find_model(models_path: Path, name: str, version: str | None = None) -> Model:
    """Finds a model by name and version.

    Args:
        models_path: The folder of all models.
        name: The model's name.
        version: Version of the model; None: the highest, compared number by number.

    Raises:
        ModelNotFound: No such model is installed.
        ModelInvalid: The model's manifest is invalid.
    """
    if not re.fullmatch(NAME_PATTERN, name) or (version is not None and not re.fullmatch(VERSION_PATTERN, version)):
        raise ModelNotFound(f"{name!r} {version or ''} is not the name and version of a model".replace("  ", " "))
    versions = _versions(models_path / name)
    if not versions:
        names = dict.fromkeys(folder.parent.name for folder in list_models(models_path))
        raise ModelNotFound(f"model {name!r} is not installed; MODELS_PATH holds {', '.join(names) or 'no model'}")
    if version is None:
        version = versions[-1]
    elif version not in versions:
        raise ModelNotFound(f"model {name!r} has no version {version}; installed: {', '.join(versions)}")
    return read_model(models_path / name / version)


def list_models(models_path: Path) -> list[Path]:
    """Lists the folder of each version of each installed model, sorted by name and version."""
    if not models_path.is_dir():
        return []
    names = sorted(folder for folder in models_path.iterdir() if re.fullmatch(NAME_PATTERN, folder.name))
    return [name / version for name in names for version in _versions(name)]


def require_models(models_path: Path) -> list[Path]:
    """Lists the folders of the installed models like `list_models`.

    Raises:
        ModelNotFound: No model is installed.
    """
    folders = list_models(models_path)
    if not folders:
        raise ModelNotFound(f"no model is installed under MODELS_PATH {models_path}")
    return folders


def read_model(folder: Path) -> Model:
    """Reads the manifest in a model's folder.

    Raises:
        ModelInvalid: The manifest is unreadable, violates the schema or contradicts the folder's name.
    """
    title = f"{folder.parent.name} {folder.name}"
    try:
        content = (folder / MANIFEST_FILE).read_bytes()
        manifest = Manifest.model_validate_json(content)
    except OSError as error:
        raise ModelInvalid(f"model {title} has no readable {MANIFEST_FILE}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise ModelInvalid(f"model {title}: {MANIFEST_FILE} is invalid at {field}: {first['msg']}") from error
    if (manifest.name, manifest.version) != (folder.parent.name, folder.name):
        raise ModelInvalid(f"model {title}: {MANIFEST_FILE} is for {_title(manifest)}")
    return Model(manifest, hashlib.sha256(content).hexdigest(), folder)


def check_signature(manifest: Manifest, inputs: list[list[int | None]], outputs: list[list[int | None]]) -> None:
    """Checks the shapes of a network's inputs and outputs against the manifest.

    Args:
        manifest: The model's manifest.
        inputs: Shape of each input, None for a free dimension. Expected: one input of (batch, channels, *window).
        outputs: Shape of each output. Expected: one output of (batch, labels, *window).

    Raises:
        ModelInvalid: The shapes differ from the manifest.
    """
    batch = inputs[0][0] if inputs and inputs[0] else None
    for role, shapes, channels in (
        ("input", inputs, len(manifest.channels)),
        ("output", outputs, len(manifest.labels)),
    ):
        expected = [batch or "any", channels, *manifest.window]
        fits = len(shapes) == 1 and len(shapes[0]) == len(expected)
        if not fits or any(got not in (None, want) for got, want in zip(shapes[0], expected, strict=True)):
            raise ModelInvalid(f"model {_title(manifest)}: expected one {role} of shape {expected}, got {shapes}")
    if len(manifest.channels) != 1:
        raise ModelInvalid(f"model {_title(manifest)} expects {len(manifest.channels)} channels; a job has one volume")


def _versions(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    versions = [
        child.name for child in folder.iterdir() if child.is_dir() and re.fullmatch(VERSION_PATTERN, child.name)
    ]
    return sorted(versions, key=lambda version: [int(part) for part in version.split(".")])


def _title(manifest: Manifest) -> str:
    return f"{manifest.name} {manifest.version}"
