"""Which task of TotalSegmentator a source holds."""

import pytest

from inference_service.core.errors import BadRequest, InputNotFound, ModelInvalid
from inference_service.importers.totalsegmentator.tasks import TASKS, choose_task, is_dataset

TOTAL = TASKS[0].datasets
BODY = "Dataset299_body_1559subj"


def test_each_task_names_its_parts_and_labels_once() -> None:
    names = [task.name for task in TASKS]
    assert len(set(names)) == len(names)
    for task in TASKS:
        assert len(set(task.datasets)) == len(task.datasets)
        assert not task.counts or len(task.counts) == len(task.datasets)
        assert all(is_dataset(dataset) for dataset in task.datasets)
        assert not task.crop or task.crop_task in names


@pytest.mark.parametrize(
    ("datasets", "asked", "name"),
    [
        (TOTAL, None, "total"),
        ((*TOTAL, BODY), "total", "total"),
        ((*TOTAL, BODY), "body", "body"),
        ((BODY,), None, "body"),
        (("Dataset857_TotalSegMRI_thigh_shoulder_1088subj",), "thigh_shoulder_muscles_mr", "thigh_shoulder_muscles_mr"),
        (("Dataset999_TotalSegmentator_new_9subj",), None, "Dataset999_TotalSegmentator_new_9subj"),
    ],
)
def test_the_only_task_or_the_one_that_is_asked_for_is_chosen(
    datasets: tuple[str, ...], asked: str | None, name: str
) -> None:
    assert choose_task(datasets, asked).name == name


def test_a_part_by_itself_keeps_the_values_of_its_labels() -> None:
    part = choose_task((TOTAL[2],), None)
    assert (part.datasets, part.counts, part.overlap, part.known) == ((TOTAL[2],), (18,), 0.2, False)


def test_a_missing_part_is_named() -> None:
    with pytest.raises(InputNotFound, match="the task total has 5 parts, and the source lacks Dataset293_Total"):
        choose_task([*TOTAL[:2], *TOTAL[3:]], None)
    with pytest.raises(InputNotFound, match="lacks Dataset299_body"):
        choose_task(TOTAL, "body")


def test_one_of_several_tasks_must_be_asked_for() -> None:
    with pytest.raises(BadRequest, match=r"several tasks \(total, body\): choose one by --task"):
        choose_task((*TOTAL, BODY), None)
    with pytest.raises(BadRequest, match="no task 'bodies'"):
        choose_task((BODY,), "bodies")


def test_a_task_that_a_manifest_cannot_describe_is_refused() -> None:
    with pytest.raises(ModelInvalid, match="vertebrae_pp cannot be imported: its postprocessing"):
        choose_task(("Dataset803_TotalSegmentator_vertebrae_inner_1559subj",), None)


@pytest.mark.parametrize(
    "name",
    [
        "Dataset001_Liver",
        "Dataset008_HepaticVessel",
        "TotalSegmentator",
        "Dataset291_x",
        "Dataset001_TotalSegmentator",
    ],
)
def test_other_data_sets_are_left_to_nnunet(name: str) -> None:
    assert not is_dataset(name)
