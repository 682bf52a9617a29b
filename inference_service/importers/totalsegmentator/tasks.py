"""TotalSegmentator's tasks, as its version 2.18 defines them: their data sets, and what it does beside nnU-Net."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from inference_service.contract.manifest_types import Modality
from inference_service.core.errors import BadRequest, InputNotFound, ModelInvalid

VERSION = "2.18"
"""The version of TotalSegmentator that the tasks follow."""
# The names of its data sets end in the number of subjects. Others train nnU-Net itself on the public data, as
# Dataset001_TotalSegmentator. Data sets without these letters are listed below.
_NAME = re.compile(r"Dataset\d{3}_\w*TotalSeg\w*_\d+subj")
_FAST, _FASTEST, _FAST_MR = "total_fast", "total_fastest", "total_mr_fast"
_LUNG = (
    *("lung_upper_lobe_left", "lung_lower_lobe_left"),
    *("lung_upper_lobe_right", "lung_middle_lobe_right", "lung_lower_lobe_right"),
)
_NECK = ("clavicula_left", "clavicula_right", "vertebrae_C1", "vertebrae_C5", "vertebrae_T1", "vertebrae_T4")
# Removes components of up to 50 ml.
_BODY: tuple[dict[str, object], ...] = (
    {"step": "largest_component", "labels": [1], "grid": "network", "connectivity": "faces"},
    {"step": "remove_small", "labels": [2], "min_volume_ml": 50, "grid": "network", "connectivity": "faces"},
)
_OWN_STEPS = "its postprocessing renames vertebrae by their order, which a manifest cannot say"


@dataclass(frozen=True)
class Task:
    """A task of TotalSegmentator.

    Attributes:
        name: Its name; `_fast` and `_fastest` stand for the options of these names.
        datasets: The folder of each part's data set, in the order in which they run.
        counts: Labels of each part, without the background; none: any number.
        modality: Modality of the scans.
        overlap: Overlap of the windows.
        resampled: Whether TotalSegmentator resamples the scan to the spacing of the plans, before nnU-Net gets it.
        crop: Labels to which the scan is cropped.
        crop_task: The task whose labels these are.
        margin_mm: Margin of the crop.
        removed: Values of labels that are not kept.
        all_folds: Whether all folds are averaged, instead of the first one alone.
        postprocessing: Steps of a manifest.
        refused: Why the task cannot be imported; empty: it can.
        known: Whether TotalSegmentator has the task.
    """

    name: str
    datasets: tuple[str, ...]
    counts: tuple[int, ...] = ()
    modality: Modality = "CT"
    overlap: float = 0.5
    resampled: bool = True
    crop: tuple[str, ...] = ()
    crop_task: str = _FASTEST
    margin_mm: float = 20.0
    removed: tuple[int, ...] = ()
    all_folds: bool = False
    postprocessing: Sequence[dict[str, object]] = ()
    refused: str = ""
    known: bool = True

    def part(self, dataset: str) -> "Task":
        """Returns the task for one of its parts alone, whose labels keep the values that they have there."""
        if self.datasets == (dataset,):
            return self
        counts = self.counts[self.datasets.index(dataset) :][:1]
        return replace(self, name=f"{self.name}, {dataset}", datasets=(dataset,), counts=counts, known=False)


def _total(name: str, *datasets: str, counts: Sequence[int] = (), modality: Modality = "CT") -> Task:
    # TotalSegmentator's step is 0.8 windows for these tasks.
    return Task(name, datasets, tuple(counts), modality, overlap=0.2)


_PARTS = (24, 26, 18, 23, 26)
TASKS: tuple[Task, ...] = (
    _total(
        "total",
        "Dataset291_TotalSegmentator_part1_organs_1559subj",
        "Dataset292_TotalSegmentator_part2_vertebrae_1532subj",
        "Dataset293_TotalSegmentator_part3_cardiac_1559subj",
        "Dataset294_TotalSegmentator_part4_muscles_1559subj",
        "Dataset295_TotalSegmentator_part5_ribs_1559subj",
        counts=_PARTS,
    ),
    _total(_FAST, "Dataset297_TotalSegmentator_total_3mm_1559subj", counts=(117,)),
    _total(_FASTEST, "Dataset298_TotalSegmentator_total_6mm_1559subj", counts=(117,)),
    _total(
        "total_v3",
        "Dataset831_TotalSegmentator_part1_organs_1830subj",
        "Dataset832_TotalSegmentator_part2_vertebrae_1559subj",
        "Dataset833_TotalSegmentator_part3_cardiac_1830subj",
        "Dataset834_TotalSegmentator_part4_muscles_1830subj",
        "Dataset835_TotalSegmentator_part5_ribs_1559subj",
        counts=_PARTS,
    ),
    _total("total_v3_fast", "Dataset836_TotalSegmentator_total_3mm_1559subj", counts=(117,)),
    _total("total_v3_fastest", "Dataset837_TotalSegmentator_total_6mm_1559subj", counts=(117,)),
    _total(
        "total_mr",
        "Dataset850_TotalSegMRI_part1_organs_1088subj",
        "Dataset851_TotalSegMRI_part2_muscles_1088subj",
        counts=(29, 21),
        modality="MR",
    ),
    _total(_FAST_MR, "Dataset852_TotalSegMRI_total_3mm_1088subj", counts=(50,), modality="MR"),
    _total("total_mr_fastest", "Dataset853_TotalSegMRI_total_6mm_1088subj", counts=(50,), modality="MR"),
    Task("body", ("Dataset299_body_1559subj",), (2,), postprocessing=_BODY),
    Task("body_fast", ("Dataset300_body_6mm_1559subj",), (2,), postprocessing=_BODY),
    Task("body_mr", ("Dataset597_mri_body_139subj",), (2,), "MR"),
    Task("body_mr_fast", ("Dataset598_mri_body_6mm_139subj",), (2,), "MR"),
    Task("vertebrae_mr", ("Dataset756_mri_vertebrae_1076subj",), modality="MR"),
    Task("vertebrae_body", ("Dataset305_vertebrae_discs_1559subj",)),
    Task("vertebrae_pp", ("Dataset803_TotalSegmentator_vertebrae_inner_1559subj",), refused=_OWN_STEPS),
    Task("lung_vessels", ("Dataset117_lung_airways_arteries_veins_282subj",), crop=_LUNG, crop_task=_FAST),
    Task("lung_vessels_LEGACY", ("Dataset258_lung_vessels_248subj",), resampled=False, crop=_LUNG),
    Task("cerebral_bleed", ("Dataset150_icb_v0",), (1,), resampled=False, crop=("brain",)),
    Task(
        "hip_implant",
        ("Dataset260_hip_implant_71subj",),
        resampled=False,
        crop=("femur_left", "femur_right", "hip_left", "hip_right"),
    ),
    Task("pleural_pericard_effusion", ("Dataset315_thoraxCT",), (3,), resampled=False, crop=_LUNG, all_folds=True),
    Task("head_glands_cavities", ("Dataset775_head_glands_cavities_492subj",), crop=("skull",)),
    Task("headneck_bones_vessels", ("Dataset776_headneck_bones_vessels_492subj",), crop=_NECK),
    Task("head_muscles", ("Dataset777_head_muscles_492subj",), crop=("skull",)),
    Task(
        "headneck_muscles",
        ("Dataset778_headneck_muscles_part1_492subj", "Dataset779_headneck_muscles_part2_492subj"),
        (11, 12),
        crop=_NECK,
    ),
    Task("oculomotor_muscles", ("Dataset351_oculomotor_muscles_18subj",), crop=("skull",)),
    Task("lung_nodules", ("Dataset913_lung_nodules",), (2,), crop=_LUNG),
    Task(
        "kidney_cysts",
        ("Dataset789_kidney_cyst_501subj",),
        crop=("kidney_left", "kidney_right", "liver", "spleen", "colon"),
        removed=(3, 4),
    ),
    Task("breasts", ("Dataset527_breasts_1559subj",)),
    Task("ventricle_parts", ("Dataset552_ventricle_parts_38subj",), crop=("brain",)),
    Task("liver_segments", ("Dataset570_ct_liver_segments",), (8,), crop=("liver",)),
    Task(
        "liver_segments_mr",
        ("Dataset576_mri_liver_segments_120subj",),
        modality="MR",
        crop=("liver",),
        crop_task=_FAST_MR,
    ),
    Task("liver_lesions", ("Dataset591_ct_liver_lesions_842subj",), crop=("liver",), crop_task=_FAST),
    Task(
        "liver_lesions_mr",
        ("Dataset589_ct_mri_liver_lesions_750subj",),
        modality="MR",
        crop=("liver",),
        crop_task=_FAST_MR,
    ),
    Task("craniofacial_structures", ("Dataset115_mandible",), (7,), crop=("skull",)),
    Task("abdominal_muscles", ("Dataset952_abdominal_muscles_167subj",), crop=("body_trunc",), crop_task="body_fast"),
    Task(
        "teeth",
        ("Dataset113_ToothFairy3",),
        (77,),
        crop=("teeth_lower", "teeth_upper"),
        crop_task="craniofacial_structures",
        margin_mm=10.0,
    ),
    Task("trunk_cavities", ("Dataset343_mediastinum_1786subj",)),
    Task("brain_aneurysm", ("Dataset615_MAXIMUS",), (1,), modality="MR", all_folds=True),
    Task(
        "heartchambers_highres",
        ("Dataset301_heart_highres_1559subj",),
        refused="it removes labels outside of another model's, which a manifest cannot say",
    ),
    Task("appendicular_bones", ("Dataset304_appendicular_bones_ext_1559subj",), removed=(12, 13, 14, 15)),
    Task("appendicular_bones_mr", ("Dataset855_TotalSegMRI_appendicular_bones_1088subj",), modality="MR"),
    Task("tissue_types", ("Dataset481_tissue_1559subj",)),
    Task("tissue_4_types", ("Dataset485_tissue_4types_1559subj",)),
    Task("tissue_types_mr", ("Dataset925_MRI_tissue_subset_903subj",), modality="MR"),
    Task("face", ("Dataset303_face_1559subj",)),
    Task("face_mr", ("Dataset856_TotalSegMRI_face_1088subj",), modality="MR", removed=(2, 3)),
    Task("brain_structures", ("Dataset409_neuro_550subj",), crop=("brain",)),
    Task("thigh_shoulder_muscles", ("Dataset857_TotalSegMRI_thigh_shoulder_1088subj",)),
    Task("thigh_shoulder_muscles_mr", ("Dataset857_TotalSegMRI_thigh_shoulder_1088subj",), modality="MR"),
    Task("coronary_arteries", ("Dataset509_coronary_arteries_cm_nativ_400subj_SKELETON",), crop=("heart",)),
    Task("coronary_arteries_LEGACY", ("Dataset507_coronary_arteries_cm_nativ_400subj",), crop=("heart",)),
    Task("aortic_sinuses", ("Dataset920_aortic_sinuses_cm_nativ_400subj",), crop=("heart",)),
    Task("renal_arteries", ("Dataset710_renal_arteries_127subj",), removed=(4,)),
)
"""Without those of reports, and without `liver_vessels`, whose data set has a name that other software uses too."""

_DATASETS = frozenset(dataset for task in TASKS for dataset in task.datasets)


def is_known(dataset: str) -> bool:
    """Returns True for a data set of one of the tasks."""
    return dataset in _DATASETS


def is_dataset(name: str) -> bool:
    """Returns True if a data set of this name is TotalSegmentator's, also of a version with other tasks."""
    return is_known(name) or _NAME.fullmatch(name) is not None


def is_distinct(dataset: str) -> bool:
    """Returns True for a name that nobody else gives a data set: it has the number of subjects."""
    return re.search(r"_\d+subj", dataset) is not None


def label_count(dataset: str) -> int | None:
    """Returns the number of labels of a data set, without the background; None where any number is accepted."""
    counts = (dict(zip(task.datasets, task.counts, strict=False)).get(dataset) for task in TASKS)
    return next(filter(None, counts), None)


def choose_task(datasets: Collection[str], asked: str | None) -> Task:
    """Chooses the task of a source.

    Args:
        datasets: Names of the data sets in the source.
        asked: The task that is asked for; None: the only one.

    Raises:
        BadRequest: There are several tasks, or none of that name.
        InputNotFound: A part of the task is missing.
        ModelInvalid: A manifest cannot say what TotalSegmentator does for the task.
    """
    task = _choose(datasets, asked)
    if task.refused:
        raise ModelInvalid(f"TotalSegmentator's task {task.name} cannot be imported: {task.refused}")
    return task


def _choose(datasets: Collection[str], asked: str | None) -> Task:
    there = [task for task in TASKS if not set(task.datasets).isdisjoint(datasets)]
    if asked is not None:
        task = next((task for task in TASKS if task.name == asked), None)
        if task is None:
            raise BadRequest(f"TotalSegmentator has no task {asked!r} that can be imported")
        return _complete(task, datasets)
    if len(datasets) == 1:
        (only,) = datasets
        return there[0].part(only) if there else Task(only, (only,), known=False)
    # Two tasks of one data set differ in the modality alone.
    first = [task for task in there if not any(task.datasets == other.datasets for other in there[: there.index(task)])]
    if len(first) == 1 and set(datasets) <= set(first[0].datasets):
        return _complete(first[0], datasets)
    names = ", ".join(task.name for task in there) or "none that is known"
    raise BadRequest(f"the source has data sets of several tasks ({names}): choose one by --task")


def _complete(task: Task, datasets: Collection[str]) -> Task:
    missing = [name for name in task.datasets if name not in datasets]
    if missing:
        raise InputNotFound(
            f"the task {task.name} has {len(task.datasets)} parts, and the source lacks {', '.join(missing)}"
        )
    return task
