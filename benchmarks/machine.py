"""Describes the machine of a result, without anything that identifies it."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from inference_service.core.host import usable_cpus

_CPU_INFO = Path("/proc/cpuinfo")
_MEMORY_INFO = Path("/proc/meminfo")
_FLAGS = {
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8",
}  # fmt: skip
_PACKAGES = (
    "inference-service", "numpy", "scipy", "nibabel", "isal", "onnx", "onnxruntime-openvino", "onnxruntime-gpu",
    "torch", "monai", "nnunetv2", "dynamic-network-architectures", "SimpleITK",
)  # fmt: skip


def describe_machine() -> dict[str, object]:
    """Describes CPU, memory and packages."""
    cpu = _fields(_CPU_INFO)
    memory = _fields(_MEMORY_INFO)
    return {
        "cpu": cpu.get("model name", platform.machine()),
        "cpu_flags": sorted(_FLAGS & set(cpu.get("flags", "").split())),
        "cpus": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "memory_gb": round(int(memory["MemTotal"].split()[0]) * 1024 / 1e9, 1),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def describe_gpu() -> dict[str, str]:
    """The first NVIDIA GPU's name, driver and memory.

    Raises:
        OSError: nvidia-smi is not installed.
        CalledProcessError: nvidia-smi finds no GPU.
    """
    fields = ("name", "driver_version", "memory.total")
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return {f"gpu_{field.split('.')[0]}": value for field, value in zip(fields, values, strict=True)}


def _fields(path: Path) -> dict[str, str]:
    """The first value of each `key : value` line."""
    fields: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
