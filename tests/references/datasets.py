"""The data sets that nnU-Net is trained on, and the scans that it predicts: one of each kind that models come in."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from references.cache import Fold
from references.phantoms import Draw, Grid, abdomen, head, pelvis

Voxels: TypeAlias = Literal["int16", "float32"]

# Between the seeds of the scans to train on, which start at 0, and those to predict.
FIRST_TEST_SEED = 1000


@dataclass(frozen=True)
class Training:
    """Trainings of one configuration.

    Attributes:
        window: nnU-Net's `patch_size`: axes as in the plans, after their transposition.
        strides: For each stage of the network but the first.
        spacing_mm: Instead of the planned one: axes as in the plans.
        epochs: Number of epochs, each of 40 steps.
    """

    configuration: str
    folds: tuple[Fold, ...]
    window: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    spacing_mm: tuple[float, ...] | None = None
    trainer: str = "nnUNetTrainer"
    epochs: int = 12


@dataclass(frozen=True)
class TestScan:
    """A scan to predict.

    Attributes:
        zero_border: Voxels at each end of the first axis of the file that are set to 0.
    """

    __test__ = False

    grid: Grid
    voxels: Voxels = "int16"
    zero_border: int = 0


@dataclass(frozen=True)
class DataSet:
    """A data set with the networks that are trained on it.

    Attributes:
        labels: As in nnU-Net's `dataset.json`: a value, or the values of a region.
        ignored_slices: Slices in the middle of each scan that are labelled `ignore`.
        splits: Number of cross-validation splits.
        planner: nnU-Net's class of that name makes the plans.
        compared: Configurations from which nnU-Net chooses the best, with postprocessing.
    """

    number: int
    name: str
    draw: Draw
    channels: tuple[str, ...]
    labels: Mapping[str, int | list[int]]
    grid: Grid
    size: int
    tests: Mapping[str, TestScan]
    trainings: tuple[Training, ...]
    regions_class_order: tuple[int, ...] | None = None
    ignored_slices: int = 0
    splits: int = 5
    reader: str | None = None
    planner: str = "ExperimentPlanner"
    compared: tuple[str, ...] = field(default=())

    @property
    def folder_name(self) -> str:
        """As nnU-Net names it."""
        return f"Dataset{self.number:03}_{self.name}"


_ISOTROPIC = ((2, 2, 2), (2, 2, 2))

_CT = DataSet(
    number=601,
    name="AbdomenCT",
    draw=abdomen,
    channels=("CT",),
    labels={"background": 0, "liver": 1, "kidney": 2, "vertebra": 3},
    grid=Grid((44, 38, 46), (2.6, 2.4, 2.8)),
    size=10,
    tests={
        "oblique": TestScan(Grid((63, 55, 44), (1.8, 1.6, 2.7), "LPS", (9, -14, 20))),
        "ras": TestScan(Grid((52, 45, 61), (2.2, 2.1, 2.0), "RAS")),
        # nnU-Net resamples slices this thick apart from the plane; few of them make the scan thinner than the window.
        "thick-slices": TestScan(Grid((58, 50, 15), (2.0, 1.8, 7.5), "LAS", (0, 4, 0)), "float32"),
        "padded": TestScan(Grid((60, 40, 46), (2.4, 2.3, 2.8)), zero_border=5),
    },
    trainings=(Training("3d_fullres", (0, 1, 2, 3, 4), (28, 24, 32), _ISOTROPIC),),
    compared=("3d_fullres",),
)

_MR = DataSet(
    number=602,
    name="HeadMR",
    draw=head,
    channels=("T1", "FLAIR"),
    labels={"background": 0, "whole tumour": [1, 2, 3], "tumour core": [1, 3], "enhancing": [3]},
    regions_class_order=(2, 1, 3),
    # Sagittal slices: their axis is not the first of nnU-Net's arrays, and is transposed to be.
    grid=Grid((40, 74, 62), (3.0, 1.9, 2.0)),
    size=6,
    tests={
        "oblique": TestScan(Grid((44, 80, 70), (2.8, 1.8, 1.7), "LPS", (-12, 8, 15)), "float32"),
        "ras": TestScan(Grid((48, 64, 58), (2.6, 2.2, 2.1), "RAS")),
        "coronal": TestScan(Grid((60, 56, 50), (2.0, 2.3, 2.9), "LIA")),
    },
    trainings=(Training("3d_fullres", ("all",), (28, 40, 36), _ISOTROPIC, epochs=6),),
    reader="NibabelIOWithReorient",
    planner="nnUNetPlannerResEncM",
)

_PELVIS = DataSet(
    number=603,
    name="PelvisMR",
    draw=pelvis,
    channels=("T2",),
    labels={"background": 0, "gland": 1, "nodule": 2, "ignore": 3},
    ignored_slices=2,
    grid=Grid((84, 76, 16), (0.9, 0.9, 5.0)),
    size=10,
    tests={
        "oblique": TestScan(Grid((88, 72, 15), (0.85, 0.95, 5.5), "LPS", (6, -10, 12))),
        "ras": TestScan(Grid((70, 80, 18), (1.0, 0.8, 4.4), "RAS"), "float32"),
        # The scan's voxels are nearly cubes; those of the model's grid are not, and decide.
        "cubes": TestScan(Grid((60, 56, 52), (1.3, 1.35, 1.4))),
        # nnU-Net leaves it as it is.
        "planned-spacing": TestScan(Grid((82, 74, 16), (0.9, 0.9, 5.0))),
    },
    trainings=(
        Training(
            "3d_fullres",
            (0,),
            (10, 48, 56),
            ((1, 2, 2), (2, 2, 2)),
            spacing_mm=(5.0, 0.9, 0.9),
            trainer="nnUNetTrainer_onlyMirror01",
        ),
        Training("2d", (0,), (56, 48), ((2, 2), (2, 2)), spacing_mm=(0.9, 0.9), trainer="nnUNetTrainer_onlyMirror01"),
    ),
    compared=("2d", "3d_fullres"),
)

_CASCADE = DataSet(
    number=604,
    name="CascadeCT",
    draw=abdomen,
    channels=("CT",),
    labels={"background": 0, "liver": 1, "kidney": 2, "vertebra": 3},
    grid=Grid((60, 52, 62), (1.9, 1.8, 2.1)),
    size=10,
    splits=2,
    tests={
        "oblique": TestScan(Grid((70, 60, 66), (1.7, 1.6, 1.9), "LPS", (-8, 12, 5))),
        "ras": TestScan(Grid((66, 70, 62), (1.8, 1.4, 2.1), "RAS")),
    },
    trainings=(
        Training(
            "3d_lowres",
            (0, 1),
            (24, 20, 24),
            _ISOTROPIC,
            spacing_mm=(3.6, 3.1, 3.3),
            trainer="nnUNetTrainerNoMirroring",
        ),
        Training("3d_cascade_fullres", (0, 1), (32, 28, 32), _ISOTROPIC, trainer="nnUNetTrainerNoMirroring", epochs=14),
    ),
    compared=("3d_lowres", "3d_cascade_fullres"),
)

DATA_SETS: Mapping[str, DataSet] = {data_set.name: data_set for data_set in (_CT, _MR, _PELVIS, _CASCADE)}
