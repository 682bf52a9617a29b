"""Fixtures for the tests of importers that need the extra `import`."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml
from conftest import REPOSITORY

from inference_service.core.settings import Settings
from inference_service.importers.isolation import no_progress
from inference_service.importers.model_import import Imported, import_model
from inference_service.importers.monai.bundle_config import BundleConfig
from inference_service.importers.monai.network import find_checkpoint, find_network, network_arguments
from inference_service.importers.request import ImportRequest

# `make importtest` runs them, in an environment of its own.
collect_ignore_glob = [] if find_spec("torch") else ["*.py"]
BUNDLES = REPOSITORY.parent / "shared" / "data" / "monai-bundles"
_SEED = 11


@pytest.fixture(scope="session")
def bundles() -> Path:
    """The folder of real bundles' configs, which lies outside the repository."""
    if not BUNDLES.is_dir():
        pytest.skip(f"MONAI bundles not found: {BUNDLES}")
    return BUNDLES


@pytest.fixture
def make_bundle(bundles: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies a bundle, changes its config, and adds weights of a fixed seed."""

    def make(name: str, *, change: Callable[[dict[str, Any]], None] = lambda config: None, seed: int = _SEED) -> Path:
        folder = tmp_path / name
        (folder / "configs").mkdir(parents=True)
        for path in (bundles / name / "configs").iterdir():
            shutil.copyfile(path, folder / "configs" / path.name)
        shutil.copyfile(bundles / name / "LICENSE", folder / "LICENSE")
        config_path = next((folder / "configs").glob("inference.*"))
        is_yaml = config_path.suffix == ".yaml"
        config = (yaml.safe_load if is_yaml else json.loads)(config_path.read_text())
        change(config)
        config_path.write_text(yaml.safe_dump(config, sort_keys=False) if is_yaml else json.dumps(config, indent=4))
        add_weights(folder, config_path, seed)
        return folder

    return make


def add_weights(folder: Path, config_path: Path, seed: int) -> None:
    """Saves random weights for the network of a config, such that every label occurs."""
    import torch
    from monai.networks import nets

    config = BundleConfig(config_path.read_bytes(), config_path.name, folder)
    network = find_network(config)
    arguments = network_arguments(network)
    arguments.pop("img_size", None)
    torch.manual_seed(seed)
    built = getattr(nets, network.name)(**arguments).eval()
    channels = int(str(arguments["in_channels"]))
    with torch.inference_mode():
        means = built(torch.randn(1, channels, 64, 64, 64)).mean(dim=(0, 2, 3, 4))
    weights = built.state_dict()
    bias = [key for key, value in weights.items() if key.endswith("bias") and value.shape == means.shape][-1]
    weights[bias] -= means
    path, entry = find_checkpoint(config)
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    torch.save({entry: weights}, folder / path)


@pytest.fixture
def small_scan(real_scans: Path, tmp_path: Path) -> Callable[..., Path]:
    """Cuts a box out of a real CT, with the affine that it has there."""

    def cut(size: Sequence[int], channel: int = 0) -> Path:
        image = nibabel.nifti1.load(real_scans / "chest_cta.nii.gz")
        start = [(whole - part) // 2 for whole, part in zip(image.shape, size, strict=True)]
        affine = image.affine.copy()
        affine[:3, 3] = nibabel.affines.apply_affine(image.affine, start)
        # A further channel shows another place on the same grid.
        box = tuple(
            slice(first + 3 * channel, first + 3 * channel + part) for first, part in zip(start, size, strict=True)
        )
        path = tmp_path / f"scan{channel}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj)[box].astype(np.int16), affine), path)
        return path

    return cut


@pytest.fixture
def run_import(tmp_path: Path) -> Callable[..., Imported]:
    """Imports a source into an empty folder of models."""

    def run(source: Path, **request: Any) -> Imported:
        values: Mapping[str, Any] = {"name": "test", "version": "1", "licence": "Apache-2.0", **request}
        settings = Settings(models_path=tmp_path / "models", onnx_providers=["CPUExecutionProvider"])
        return import_model(ImportRequest(source, **values), settings, no_progress)

    return run
