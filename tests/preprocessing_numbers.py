"""Numbers that MONAI 1.6.1 and nnU-Net 2.8.1 compute from small scans, for the tests of preprocessing.

Run as a script in an environment with the extra `bench`, it writes them to `preprocessing_numbers.npz` again.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import axcodes2ornt
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

NUMBERS = Path(__file__).with_suffix(".npz")

Floats = NDArray[np.float32]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Case:
    """A scan of one or two channels, and how MONAI prepares it.

    Attributes:
        orientation: Orientation of the scan; the model's is RAS.
        shape: Voxels of the scan.
        spacing_mm: Spacing of the scan.
        target_mm: `pixdim` of Spacing; -1 keeps that of the scan.
        mode: Mode of Spacing.
        foreground: Arguments of CropForeground, which follows ScaleIntensityRange.
    """

    orientation: str
    shape: tuple[int, int, int]
    spacing_mm: Triple
    target_mm: Triple
    mode: str | int = "bilinear"
    foreground: Mapping[str, int] | None = None

    @property
    def interpolations_back(self) -> tuple[str, ...]:
        """The interpolations with which Invertd brings probabilities back that manifests know: not the splines."""
        return ("linear", "nearest") if self.mode == "bilinear" else ("nearest",)

    @property
    def affine(self) -> NDArray[np.float64]:
        """The affine of a rotated grid."""
        directions = np.zeros((3, 3))
        for axis, (world_axis, sign) in enumerate(axcodes2ornt(self.orientation)):
            directions[int(world_axis), axis] = sign
        affine = np.eye(4)
        affine[:3, :3] = Rotation.from_euler("xyz", (8, -11, 14), degrees=True).as_matrix() @ directions
        affine[:3, :3] *= self.spacing_mm
        affine[:3, 3] = -91.5, 40.25, 700.125
        return affine

    @property
    def channels(self) -> Floats:
        """Noise; in two channels, most of it below -40 outside a box."""
        count = 1 if self.foreground is None else 2
        noise = integers((count, *self.shape)).astype(np.float32)
        if self.foreground is not None:
            inside = np.zeros(self.shape, dtype=bool)
            inside[tuple(slice(size // 4, size - size // 3) for size in self.shape)] = True
            noise[:, ~inside] = -50 - np.abs(noise[:, ~inside])
        return noise


CASES = {
    "coarser": Case("RAS", (11, 9, 7), (0.8, 1.1, 2.5), (1.7, 1.37, 3.1)),
    "finer": Case("LPS", (8, 7, 6), (1.8, 1.1, 2.5), (1.3, 0.7, 1.9)),
    "other axes": Case("SLA", (7, 9, 8), (2.5, 1.3, 0.9), (1.1, 1.7, 2.3)),
    "nearest": Case("LAS", (9, 8, 7), (1.3, 1.0, 2.7), (1.1, 1.7, 1.9), "nearest"),
    "quadratic": Case("RPS", (9, 8, 7), (1.3, 1.0, 2.5), (1.1, 1.7, 1.9), 2),
    "cubic": Case("LPI", (9, 8, 7), (1.3, 1.0, 2.5), (1.1, 1.7, 1.9), 3),
    "own spacing of an axis": Case("RAS", (9, 8, 7), (1.3, 1.0, 2.5), (1.1, -1.0, 1.9)),
    "almost the spacing of an axis": Case("RAS", (9, 8, 7), (1.5005, 1.0, 2.5), (1.5, 1.3, 1.9)),
    "almost the spacing": Case("RAS", (9, 8, 7), (5.003, 1.001, 2.5), (5.0, 1.0, 2.5)),
    "foreground": Case(
        "RPI", (15, 14, 13), (0.8, 1.1, 2.5), (1.1, 0.9, 1.3), foreground={"margin": 2, "k_divisible": 4}
    ),
    "foreground of a channel": Case(
        "LPS", (15, 14, 13), (0.8, 1.1, 2.5), (1.5, 1.3, 2.1),
        foreground={"margin": 3, "k_divisible": 5, "channel_indices": 1},
    ),
    "foreground beyond the image": Case(
        "RAS", (15, 14, 13), (1.5, 1.1, 2.5), (1.7, 1.9, 2.1), foreground={"margin": 6, "k_divisible": 8}
    ),
}  # fmt: skip

INTENSITIES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "z_score": [("NormalizeIntensity", {"channel_wise": True})],
    "z_score of all channels": [("NormalizeIntensity", {})],
    "z_score of nonzero": [("NormalizeIntensity", {"nonzero": True, "channel_wise": True})],
    "z_score of nonzero of all channels": [("NormalizeIntensity", {"nonzero": True})],
    "min_max": [("ScaleIntensity", {"minv": -1, "maxv": 3, "channel_wise": True})],
    "min_max of all channels": [("ScaleIntensity", {"minv": -1, "maxv": 3})],
    "percentiles": [
        ("ScaleIntensityRangePercentiles",
         {"lower": 5, "upper": 90, "b_min": -1, "b_max": 2, "clip": True, "channel_wise": True}),
    ],
    "percentiles of all channels": [
        ("ScaleIntensityRangePercentiles", {"lower": 5, "upper": 90, "b_min": -1, "b_max": 2, "clip": True}),
    ],
    "clip_percentiles": [("ClipIntensityPercentiles", {"lower": 5, "upper": 90, "channel_wise": True})],
    "clip_percentiles of all channels": [("ClipIntensityPercentiles", {"lower": 5, "upper": 90})],
    "linear": [("NormalizeIntensity", {"subtrahend": 3.0, "divisor": 2.0})],
    "fixed_range": [
        ("ScaleIntensityRange", {"a_min": -200, "a_max": 300, "b_min": -1, "b_max": 1, "clip": True}),
    ],
    "z_score and min_max": [
        ("NormalizeIntensity", {"nonzero": True}), ("ScaleIntensity", {"minv": -1.0, "maxv": 1.0}),
    ],
    "clip_percentiles and z_score": [
        ("ClipIntensityPercentiles", {"lower": 5, "upper": 90, "channel_wise": True}),
        ("NormalizeIntensity", {"channel_wise": True}),
    ],
}  # fmt: skip

NNUNET_SPACING_MM = (0.9, 1.1, 4.0)
NNUNET_TARGET_MM = (1.3, 0.8, 2.9)


def integers(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Noise from -300 to 299, without any symmetry."""
    return np.random.default_rng(sum(shape)).integers(-300, 300, shape)


def intensity_scan() -> Floats:
    """Two channels, which share some voxels of 0, and some inside that one or both have."""
    scan = integers((2, 9, 8, 7)).astype(np.float32)
    scan[:, :3] = 0
    scan[1, :, :2] = 0
    scan[:, 5:7, 4:6, 3:5] = 0
    return scan


def constant_scans() -> dict[str, Floats]:
    """Scans of one channel in which the range of a mapping is one value."""
    sparse = np.zeros((1, 9, 8, 7), dtype=np.float32)
    sparse[0, 0, 0, :4] = 7
    return {"constant": np.full((1, 4, 3, 2), 5, dtype=np.float32), "sparse": sparse}


def logits_of(shape: tuple[int, ...]) -> Floats:
    """Three channels of logits on a grid."""
    return (integers((3, *shape)) / 64).astype(np.float32)


def numbers() -> dict[str, Any]:
    """Computes all numbers by MONAI and nnU-Net."""
    return _grids() | _intensities() | _nnunet()


def _grids() -> dict[str, NDArray[Any]]:
    """For each case the image, and the labels of the probabilities that Invertd brings back to the scan."""
    import torch
    from monai.data import MetaTensor
    from monai.transforms import Compose, CropForegroundd, Invertd, Orientationd, ScaleIntensityRanged, Spacingd

    found: dict[str, NDArray[Any]] = {}
    for name, case in CASES.items():
        transforms = [
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=case.target_mm, mode=case.mode),
        ]
        if case.foreground is not None:
            transforms.append(ScaleIntensityRanged("image", a_min=-40, a_max=60, b_min=0, b_max=1, clip=True))
            transforms.append(CropForegroundd("image", source_key="image", **case.foreground))
        transform = Compose(transforms)
        data = transform({"image": MetaTensor(torch.as_tensor(case.channels), affine=torch.as_tensor(case.affine))})
        found[f"{name}: image"] = np.asarray(data["image"])
        softmax = torch.softmax(torch.as_tensor(logits_of(data["image"].shape[1:])), 0)
        for interpolation in case.interpolations_back:
            data["pred"] = MetaTensor(softmax.clone(), affine=data["image"].affine)
            invert = Invertd("pred", transform, orig_keys="image", nearest_interp=interpolation == "nearest")
            labels = np.asarray(invert(dict(data))["pred"]).argmax(axis=0)
            found[f"{name}: {interpolation} labels"] = labels.astype(np.uint8)
    return found


def _intensities() -> dict[str, NDArray[Any]]:
    import torch
    from monai import transforms

    found: dict[str, NDArray[Any]] = {}
    for name, chain in INTENSITIES.items():
        run = transforms.Compose([getattr(transforms, kind)(**fields) for kind, fields in chain])
        found[name] = np.asarray(run(torch.as_tensor(intensity_scan())))
    for name, scan in constant_scans().items():
        for kind in ("z_score of nonzero", "min_max", "percentiles"):
            ((transform, fields),) = INTENSITIES[kind]
            run = getattr(transforms, transform)(**fields)
            # Some transforms change their input.
            found[f"{kind}, {name}"] = np.asarray(run(torch.as_tensor(scan.copy())))
    return found


def _nnunet() -> dict[str, NDArray[Any]]:
    """The intensities of nonzero voxels, and their resampling with a separate axis."""
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
    from nnunetv2.preprocessing.normalization.default_normalization_schemes import ZScoreNormalization
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape

    data, seg, _ = crop_to_nonzero(intensity_scan())
    scheme = ZScoreNormalization(use_mask_for_norm=True, intensityproperties={})
    normalised = np.stack([scheme.run(channel.copy(), seg[0]) for channel in data])
    shape = compute_new_shape(data.shape[1:], NNUNET_SPACING_MM, NNUNET_TARGET_MM)
    resampled = resample_data_or_seg_to_shape(
        normalised, shape, NNUNET_SPACING_MM, NNUNET_TARGET_MM, order=3, order_z=0, force_separate_z=None
    )
    return {"nnU-Net: normalised": normalised, "nnU-Net: resampled": resampled}


if __name__ == "__main__":
    np.savez_compressed(NUMBERS, **numbers())
