"""Real bundles with weights of a fixed seed, compared with MONAI's own transforms and inferer."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai
import numpy as np
import pytest
import torch
from importers.networks import CONFIG, METADATA, make_unet, write_bundle
from monai.bundle import ConfigParser

from inference_service.contract.part import NETWORK_FILE, Part
from inference_service.core.errors import ModelInvalid
from inference_service.core.execution import CPU, ExecutionOptions
from inference_service.engine.model_registry import read_model
from inference_service.engine.session_cache import load_model
from inference_service.formats.nifti import read_nifti
from inference_service.formats.read_limits import ReadLimits
from inference_service.importers.isolation import Isolation
from inference_service.importers.model_import import Imported
from inference_service.importers.monai.bundle_config import BundleConfig
from inference_service.importers.monai.component import Component
from inference_service.importers.monai.values import Symbol
from inference_service.segmentation.labels.label_decision import decide_labels
from inference_service.segmentation.loaded_networks import loaded_networks
from inference_service.segmentation.preparation.crop import crop_box
from inference_service.segmentation.preparation.preprocessing import preprocess
from inference_service.segmentation.volume_segmentation import segment_volume
from inference_service.segmentation.windows.sliding_window import stream_logits
from inference_service.segmentation.windows.tiling import plan_windows, window_shape

Make = Callable[..., Path]
Import = Callable[..., Imported]
MAX_ERROR = 1e-3


def windows_of(*size: int) -> Callable[[dict[str, Any]], None]:
    """Makes the windows of a config smaller."""

    def change(config: dict[str, Any]) -> None:
        config["inferer"]["roi_size"] = list(size)

    return change


class Own:
    """A scan as this service prepares and segments it.

    Attributes:
        image: What the network gets, (channels, i, j, k).
        logits: What it gives, (labels, i, j, k).
        mask: The labels on the scan's grid.
    """

    def __init__(self, imported: Imported, scans: list[Path]) -> None:
        part = imported.manifest.all_parts[0]
        networks = loaded_networks(load_model(read_model(imported.folder), ExecutionOptions((CPU,), 2)), 1)
        volumes = [read_nifti(scan, ReadLimits(2**30, 2**30)).volume for scan in scans]
        box = crop_box(volumes, part.scan_crop)
        prepared = preprocess([volume.cropped(box) for volume in volumes], part, max_voxels=2**30)
        shape = prepared.image.shape[1:]
        plan = plan_windows(shape, window_shape(shape, part), part.overlap, part.placement, part.padding_sides)
        planes = stream_logits(prepared.image, [networks[NETWORK_FILE].network], part, plan)
        self.image = prepared.image
        self.logits = np.moveaxis(np.stack(list(planes)), 0, plan.stream_axis + 1)
        self.mask = segment_volume(volumes, imported.manifest, networks, max_voxels=2**30).mask


class Source:
    """The same by MONAI."""

    def __init__(self, imported: Imported, scans: list[Path], folder: Path) -> None:
        reference = imported.model.reference
        assert reference is not None
        task = {
            **reference.arguments,
            "predictor": reference.predictor,
            "scans": [str(scan) for scan in scans],
            "target": str(folder / "mask.npy"),
            "logits": str(folder / "logits.npy"),
        }
        Isolation(folder).run("predict", task, writes_to=[folder])
        self.image = np.load(folder / "logits.npy.image.npy")
        self.logits = np.load(folder / "logits.npy")
        self.mask = np.load(folder / "mask.npy")


def check_parity(imported: Imported, scans: list[Path], folder: Path) -> None:
    """Compares image, logits and labels with MONAI's."""
    own, source = Own(imported, scans), Source(imported, scans, folder)
    assert own.image.shape == source.image.shape
    np.testing.assert_allclose(own.image, source.image, atol=MAX_ERROR * float(np.ptp(source.image)))
    assert float(np.abs(own.logits - source.logits).max()) <= MAX_ERROR * float(np.ptp(source.logits))
    whole = source.mask == np.round(source.mask)  # prostate_mri_anatomy gives values between labels
    assert np.mean(whole) > 0.5
    assert np.mean(own.mask[whole] == source.mask[whole]) >= 0.9995
    assert len(np.unique(source.mask[whole])) >= 2


@pytest.mark.parametrize(
    ("name", "size", "window"),
    [
        ("spleen_ct_segmentation", (56, 60, 74), (64, 64, 48)),
        pytest.param("wholeBody_ct_segmentation", (44, 48, 52), (32, 32, 32), marks=pytest.mark.slow),
        pytest.param("pediatric_abdominal_ct_segmentation", (56, 60, 104), (32, 32, 32), marks=pytest.mark.slow),
        pytest.param("prostate_mri_anatomy", (22, 24, 28), (64, 64, 64), marks=pytest.mark.slow),
        pytest.param("swin_unetr_btcv_segmentation", (40, 44, 80), (64, 64, 64), marks=pytest.mark.slow),
    ],
)
def test_a_bundle_segments_as_monai_does(
    name: str,
    size: tuple[int, ...],
    window: tuple[int, ...],
    make_bundle: Make,
    small_scan: Make,
    run_import: Import,
    tmp_path: Path,
) -> None:
    scan = small_scan(size)
    imported = run_import(make_bundle(name, change=windows_of(*window)))
    check_parity(imported, [scan], tmp_path)


# brats_mri_segmentation's Lambdad gives the channels tumor core, whole tumor and enhancing tumor these values.
BRATS = {
    "labels": [{"name": "edema", "value": 2}, {"name": "core", "value": 1}, {"name": "enhancing", "value": 4}],
    "outputs": [{"channel": 1, "value": 2}, {"channel": 0, "value": 1}, {"channel": 2, "value": 4}],
}


@pytest.mark.slow
def test_four_channels_and_overlapping_labels_are_taken(
    make_bundle: Make, small_scan: Make, run_import: Import, tmp_path: Path
) -> None:
    source = make_bundle("brats_mri_segmentation", change=windows_of(32, 32, 32))
    with pytest.raises(ModelInvalid, match=r"line \d+, postprocessing#transforms#3: Lambdad: .*--labels"):
        run_import(source)
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(BRATS))
    imported = run_import(source, labels=labels)
    assert [channel.name for channel in imported.manifest.channels] == ["T1c", "T1", "T2", "FLAIR"]
    check_parity(imported, [small_scan((40, 36, 44), channel) for channel in range(4)], tmp_path)


def test_the_values_of_overlapping_channels_are_those_of_the_lambda() -> None:
    part = Part.model_validate(
        {
            "channels": [{"name": "MR", "intensity": {"kind": "none"}}],
            "orientation": "RAS",
            "spacing_mm": [1, 1, 1],
            "window": [1, 1, 1],
            "activation": "sigmoid",
            "outputs": BRATS["outputs"],
        }
    )
    channels = np.array(list(itertools.product([-1, 1], repeat=3)), dtype=np.float32).T
    decided = decide_labels(channels, part, values=[2, 1, 4], dtype=np.uint8)
    core, whole, enhancing = channels > 0
    assert decided.tolist() == np.where(enhancing, 4, np.where(core, 1, np.where(whole, 2, 0))).tolist()


def on_image(target: str, **arguments: object) -> dict[str, object]:
    return {"_target_": target, "keys": "image", **arguments}


def on_mask(target: str, **arguments: object) -> dict[str, object]:
    return {"_target_": target, "keys": "pred", **arguments}


LOAD = [on_image("LoadImaged"), on_image("AddChanneld"), on_image("Orientationd", axcodes="LPS")]
SCALE = on_image("ScaleIntensityRanged", a_min=-200, a_max=300, b_min=0, b_max=1, clip=True)
WHOLE = {"inferer": {"_target_": "SimpleInferer"}}
INVERT = on_mask("Invertd", orig_keys="image", transform="@preprocessing", nearest_interp=True)
CONFIGS: dict[str, dict[str, Any]] = {
    "resized": WHOLE
    | {
        "preprocessing": [
            *LOAD,
            on_image("ScaleIntensityd"),
            on_image("Resized", spatial_size=[48, 40, 32], mode="trilinear"),
        ],
    },
    "box": WHOLE
    | {
        "preprocessing": [
            *LOAD,
            on_image("Spacingd", pixdim=[2, 2.2, 1.9]),
            on_image("ResizeWithPadOrCropd", spatial_size=[48, 24, 40]),
            on_image("NormalizeIntensityd", channel_wise="True"),
        ],
    },
    "components": {
        "preprocessing": [*LOAD, on_image("Spacingd", pixdim=[2.1, 1.9, 2.3]), SCALE],
        "postprocessing": [
            on_mask("AsDiscreted", argmax=True),
            on_mask("FillHolesd", connectivity=2),
            on_mask("KeepLargestConnectedComponentd", applied_labels=[1]),
            on_mask("RemoveSmallObjectsd", min_size=40),
            INVERT,
        ],
    },
    "one bound": {
        "preprocessing": [
            *LOAD,
            on_image("Spacingd", pixdim=[2.1, 1.9, 2.3]),
            on_image("ScaleIntensityRanged", a_min=-200, a_max=300, b_min=0.3, b_max=None, clip=True),
        ],
        "postprocessing": [
            on_mask("Activationsd", sigmoid=True),
            on_mask("AsDiscreted", argmax=True),
            on_mask("KeepLargestConnectedComponentd", applied_labels=1),
            INVERT,
        ],
    },
    "planes": {
        "preprocessing": [on_image("LoadImaged"), on_image("AddChanneld"), on_image("ScaleIntensityd")],
        "network_def": CONFIG["network_def"] | {"spatial_dims": 2},
        "inferer": {"_target_": "SliceInferer", "roi_size": [32, 32], "spatial_dim": 2},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_further_transforms_are_those_of_monai(name: str, small_scan: Make, run_import: Import, tmp_path: Path) -> None:
    from monai.networks.nets import UNet

    config = CONFIG | CONFIGS[name]
    for step in ("preprocessing", "postprocessing"):
        if isinstance(config[step], list):
            config[step] = {"_target_": "Compose", "transforms": config[step]}
    torch.manual_seed(3)
    arguments = {key: value for key, value in config["network_def"].items() if key != "_target_"}
    network = UNet(**arguments).eval()
    source = write_bundle(tmp_path / "bundle", {"model": network.state_dict()}, config)
    check_parity(run_import(source), [small_scan((52, 56, 60))], tmp_path)


def test_arguments_of_a_network_have_the_names_of_this_version(run_import: Import, tmp_path: Path) -> None:
    network = {name: value for name, value in CONFIG["network_def"].items() if name != "spatial_dims"}
    older = CONFIG | {"network_def": network | {"dimensions": 3}}
    source = write_bundle(tmp_path / "bundle", {"model": make_unet().state_dict()}, older)
    assert run_import(source).manifest.window == (16, 16, 16)


def test_an_error_of_a_network_names_the_versions_of_monai(run_import: Import, tmp_path: Path) -> None:
    config = CONFIG | {"network_def": CONFIG["network_def"] | {"halves": True}}
    source = write_bundle(tmp_path / "bundle", {"model": make_unet().state_dict()}, config)
    (source / "configs" / "metadata.json").write_text(json.dumps(METADATA | {"monai_version": "0.8.1"}))
    with pytest.raises(ModelInvalid, match=rf"halves.*MONAI 0\.8\.1, and this is {re.escape(monai.__version__)}"):
        run_import(source)


@pytest.mark.slow
def test_the_architecture_of_a_searched_network_comes_from_its_checkpoint(
    small_scan: Make, run_import: Import, tmp_path: Path
) -> None:
    from monai.networks.nets import DiNTS, TopologyInstance

    found = {"arch_code_a": np.ones((3, 7)), "arch_code_c": np.arange(21).reshape(3, 7) % 5, "node_a": np.ones((4, 3))}
    space = {"num_blocks": 3, "num_depths": 3, "channel_mul": 0.25, "use_downsample": True}
    codes = [found["arch_code_a"], found["arch_code_c"]]
    torch.manual_seed(3)
    network = DiNTS(
        TopologyInstance(arch_code=codes, **space), 1, 2, use_downsample=True, node_a=torch.from_numpy(found["node_a"])
    )
    config = CONFIG | {
        "arch_ckpt": "$torch.load('/workspace/bundle/models/search.pt', map_location=torch.device('cuda'))",
        "space": {
            "_target_": "monai.networks.nets.TopologyInstance",
            **space,
            "arch_code": ["$@arch_ckpt['arch_code_a']", "$@arch_ckpt['arch_code_c']"],
            "device": "$torch.device('cuda')",
        },
        "network_def": {
            "_target_": "monai.networks.nets.DiNTS",
            "dints_space": "@space",
            "in_channels": 1,
            "num_classes": 2,
            "use_downsample": True,
            "node_a": "$torch.from_numpy(@arch_ckpt['node_a'])",
        },
    }
    source = write_bundle(tmp_path / "bundle", {"model": network.state_dict()}, config)
    torch.save(found, source / "models" / "search.pt")
    check_parity(run_import(source), [small_scan((52, 56, 60))], tmp_path)


def test_expressions_have_the_values_that_monai_gives_them(bundles: Path) -> None:
    for folder in sorted(bundles.iterdir()):
        for path in sorted(folder.glob("configs/inference*")):
            own = BundleConfig(path.read_bytes(), path.name, folder)
            parser = ConfigParser(ConfigParser.load_config_file(path))
            for key in own.items:
                if key not in _NOT_RESOLVED:
                    found = own.resolve(key)
                    if not isinstance(found, Component | Symbol | list | dict):
                        assert found == parser.get_parsed_content(key), f"{folder.name} {key}"


# They read files, name packages that are not installed, or are not needed for a manifest.
_NOT_RESOLVED = {"imports", "datalist", "test_datalist", "initialize", "run", "device"}
