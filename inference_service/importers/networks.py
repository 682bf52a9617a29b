"""Exports the networks of a model into its folder, and refuses one of which ONNX Runtime computes something else."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

from inference_service.core.errors import InputNotFound, ModelInvalid
from inference_service.core.files import Checksum
from inference_service.engine.onnx_file import MAX_NETWORK_BYTES
from inference_service.importers.isolation import Isolation, Progress
from inference_service.importers.sources import NetworkCopy, NetworkRecipe

MAX_ERROR = 1e-3
"""The largest error of an exported network, as a share of the range of PyTorch's logits."""
MAX_ERROR_FLOAT16 = 2e-2
"""The same for a network in float16, whose numbers have 11 bits."""
_WINDOWS = 2
# Of larger windows, only one is run.
_MANY_VALUES = 2**23


@dataclass(frozen=True)
class ExportedNetwork:
    """A network in the model's folder.

    Attributes:
        file: Its name.
        sha256: Of the ONNX file.
        external_data: SHA-256 of each file with tensors.
        error: The largest difference of ONNX Runtime's logits from PyTorch's on random windows, as a share of their
            range; None: there is no PyTorch network.
        max_error: The largest error that is accepted.
        details: Opset, exporter and versions.
    """

    file: str
    sha256: str
    external_data: Mapping[str, str] = field(default_factory=dict)
    error: float | None = None
    max_error: float = MAX_ERROR
    details: Mapping[str, object] = field(default_factory=dict)


def export_network(
    network: NetworkRecipe | NetworkCopy, folder: Path, isolation: Isolation, *, float16: bool, progress: Progress
) -> ExportedNetwork:
    """Writes a network into a model's folder.

    Args:
        network: How it is made.
        folder: The model's folder.
        isolation: Where it is exported and compared with PyTorch.
        float16: Whether it is converted to float16.
        progress: Called for each step.

    Raises:
        ModelInvalid: The network cannot be exported, or ONNX Runtime computes something else than PyTorch.
        InputNotFound: A file of the network is missing.
        ServiceError: See `Isolation.run`.
    """
    if isinstance(network, NetworkCopy):
        return _copy(network, folder)
    with TemporaryDirectory(prefix="export-", dir=isolation.scratch, ignore_cleanup_errors=True) as written:
        arrays = {"windows": f"{written}/windows.npy", "logits": f"{written}/logits.npy"}
        task = {
            **arrays,
            "builder": network.builder,
            "arguments": network.arguments,
            "input_shape": list(network.input_shape),
            "free_axes": list(network.free_axes),
            "target": f"{written}/{network.file}",
            "count": 1 if prod(network.input_shape) > _MANY_VALUES else _WINDOWS,
            "float16": float16,
        }
        details = isolation.run(
            "export", task, progress=lambda step, share: progress(step, 0.8 * share), writes_to=[Path(written)]
        ).result
        target = _taken_over(Path(written, network.file), folder / network.file)
        progress("comparing with PyTorch", 0.8)
        measured = isolation.run("measure", {**arrays, "file": str(target.resolve())}).result
    error = float(str(measured["error"]))
    limit = MAX_ERROR_FLOAT16 if float16 else MAX_ERROR
    if not error <= limit:
        raise ModelInvalid(
            f"{network.file} differs from PyTorch by {error:.1e} of the range of its logits on random windows; at most "
            f"{limit:g} is accepted"
        )
    progress("compared with PyTorch", 1.0)
    return ExportedNetwork(
        network.file,
        Checksum.of_file(target).sha256,
        error=error,
        max_error=limit,
        details={**details, "onnxruntime": measured["onnxruntime"]},
    )


def _taken_over(written: Path, target: Path) -> Path:
    """Moves a file that the process, in which Python of a source may have run, may have replaced by a link."""
    if written.is_symlink() or not written.is_file():
        raise ModelInvalid(f"the process that exported the network has not written {written.name} as a file")
    shutil.move(written, target)
    return target


def _copy(network: NetworkCopy, folder: Path) -> ExportedNetwork:
    external: dict[str, str] = {}
    for name in network.external_data:
        source = network.source.parent / name
        if source.is_symlink() or not source.is_file():
            raise InputNotFound(f"{name}, which holds tensors of the network, does not lie beside the ONNX file")
        external[name] = _copied(source, folder / name)
    if network.source.stat().st_size > MAX_NETWORK_BYTES:
        raise ModelInvalid(f"the ONNX file has more than {MAX_NETWORK_BYTES} bytes")
    return ExportedNetwork(network.file, _copied(network.source, folder / network.file), external)


def _copied(source: Path, target: Path) -> str:
    shutil.copyfile(source, target)
    return Checksum.of_file(target).sha256


def with_checksums(fields: Mapping[str, object], networks: Sequence[ExportedNetwork]) -> dict[str, object]:
    """Returns the fields of a manifest with the checksum of each network, in its parts and first stages too.

    Args:
        fields: Each entry of `networks` has a `file`; where there is no such field, the only network is meant.
        networks: The networks.
    """
    by_file = {network.file: network for network in networks}

    def entry(network: ExportedNetwork) -> dict[str, object]:
        external = {"external_data": dict(network.external_data)} if network.external_data else {}
        return {"file": network.file, "sha256": network.sha256, **external}

    def complete(value: object) -> object:
        if isinstance(value, Mapping):
            return {
                key: [{**entry(by_file[str(each["file"])]), **each} for each in inner]
                if key == "networks" and isinstance(inner, Sequence)
                else complete(inner)
                for key, inner in value.items()
            }
        if isinstance(value, list | tuple):
            return [complete(each) for each in value]
        return value

    completed = complete(fields)
    result = dict(completed) if isinstance(completed, Mapping) else {}
    if not _names_networks(fields):
        (only,) = networks
        own: dict[str, object] = {"networks": [entry(only)]} if only.external_data else {"sha256": only.sha256}
        result = {**own, **result}
    return result


def _names_networks(value: object) -> bool:
    if isinstance(value, Mapping):
        return "networks" in value or any(map(_names_networks, value.values()))
    return isinstance(value, list | tuple) and any(map(_names_networks, value))
