"""Exports the networks of a model into its folder, and measures how far ONNX Runtime is from PyTorch."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import InputNotFound, ModelInvalid
from inference_service.core.execution import CPU
from inference_service.core.files import Checksum
from inference_service.core.host import usable_cpus
from inference_service.engine.onnx_file import MAX_NETWORK_BYTES, NetworkContent
from inference_service.engine.session import RUNTIME_VERSION, Session
from inference_service.importers.isolation import Progress, run_task
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
    network: NetworkRecipe | NetworkCopy, folder: Path, scratch: Path, *, float16: bool, progress: Progress
) -> ExportedNetwork:
    """Writes a network into a model's folder.

    Args:
        network: How it is made.
        folder: The model's folder.
        scratch: A folder for temporary files.
        float16: Whether it is converted to float16.
        progress: Called for each step.

    Raises:
        ModelInvalid: The network cannot be exported, or ONNX Runtime computes something else than PyTorch.
        InputNotFound: A file of the network is missing.
    """
    if isinstance(network, NetworkCopy):
        return _copy(network, folder)
    written = scratch / "written" if network.runs_code else scratch
    written.mkdir(exist_ok=True)
    target = (written if network.runs_code else folder) / network.file
    windows, logits = written / "windows.npy", written / "logits.npy"
    task = {
        "builder": network.builder,
        "arguments": network.arguments,
        "input_shape": list(network.input_shape),
        "free_axes": list(network.free_axes),
        "target": str(target),
        "windows": str(windows),
        "logits": str(logits),
        "count": 1 if np.prod(network.input_shape) > _MANY_VALUES else _WINDOWS,
        "float16": float16,
    }
    writes_to = [written] if network.runs_code else None
    details = run_task(
        "export", task, scratch, progress=lambda step, share: progress(step, 0.8 * share), writes_to=writes_to
    ).result
    if network.runs_code:
        target = _taken_over(target, folder / network.file)
    progress("comparing with PyTorch", 0.8)
    error = measure_error(target, np.load(windows), np.load(logits))
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
        details={**details, "onnxruntime": RUNTIME_VERSION},
    )


def _taken_over(written: Path, target: Path) -> Path:
    """Moves a file that Python of the source may have replaced by a link; returns where it is."""
    if written.is_symlink() or not written.is_file():
        raise ModelInvalid(f"the process that ran Python of the source has not written {written.name} as a file")
    shutil.move(written, target)
    return target


def measure_error(file: Path, windows: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
    """Measures how far ONNX Runtime's logits are from given ones.

    Args:
        file: The ONNX file.
        windows: Shape (count, channels, *window).
        logits: Shape (count, labels, *window).

    Returns:
        The largest difference as a share of the range of the given logits.

    Raises:
        ModelInvalid: ONNX Runtime's logits have another shape, or are not finite.
    """
    session = Session(NetworkContent(file.read_bytes()), providers=[CPU], threads=usable_cpus())
    # All windows at once where the batch is free, so that this is tried too.
    step = session.fixed_batch_size or len(windows)
    largest = 0.0
    for start in range(0, len(windows), step):
        computed = session.run(windows[start : start + step])
        expected = logits[start : start + step]
        if computed.shape != expected.shape:
            raise ModelInvalid(f"ONNX Runtime gives logits of shape {computed.shape}, PyTorch of {expected.shape}")
        if not np.isfinite(computed).all():
            # A maximum would skip them.
            raise ModelInvalid("ONNX Runtime gives values that are not finite for random windows")
        largest = max(largest, float(np.abs(computed - expected).max()))
    spread = float(logits.max() - logits.min())
    return largest / spread if spread > 0 else largest


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
