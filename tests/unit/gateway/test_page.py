"""Names and figures that the page's modules repeat, as they cannot import them."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from inference_service.contract.task_message import OutputFormat, Tolerance
from inference_service.core.progress import STAGES
from inference_service.core.settings import Settings
from inference_service.gateway import page
from inference_service.jobs.schema import FINAL_STATES, JobState
from inference_service.segmentation.preview import rendering

WEB = Path(page.__file__).parent / "web"


def source(module: str) -> str:
    return (WEB / module).read_text(encoding="utf-8")


def keys(module: str, name: str) -> set[str]:
    """The keys of an object that a module defines."""
    (content,) = re.findall(rf"const {name} = \{{(.*?)\n\}};", source(module), re.DOTALL)
    return set(re.findall(r'^\s*"?([\w-]+)"?:', content, re.MULTILINE))


def number(module: str, name: str) -> float:
    (found,) = re.findall(rf"const {name} = (-?\d+);", source(module))
    return float(found)


def test_the_states_are_those_of_jobs() -> None:
    (final,) = re.findall(r"FINAL_STATES = (\[.*?\]);", source("format.js"))
    (others,) = re.findall(r"STATES = \[(.*?), \.\.\.FINAL_STATES\];", source("format.js"))
    assert set(json.loads(final)) == FINAL_STATES
    assert set(json.loads(final) + json.loads(f"[{others}]")) == set(JobState)


def test_the_stages_are_those_of_jobs_in_their_order() -> None:
    (stages,) = re.findall(r'"([\w ]+)"\.split\(" "\)', source("job.js"))
    assert tuple(stages.split()) == STAGES


@pytest.mark.parametrize(
    ("name", "values"), [("FORMATS", set(get_args(OutputFormat)) - {"nifti"}), ("TOLERATED", set(get_args(Tolerance)))]
)
def test_the_options_are_those_of_a_request(name: str, values: set[str]) -> None:
    assert keys("new_job.js", name) == values


def test_the_windows_are_those_of_the_preview() -> None:
    ranges = dict(re.findall(r"(\w+): \{ text: .*?, range: (\[.*?\]) \}", source("windows.js")))
    for name, window in (
        ("soft_tissue", rendering.SOFT_TISSUE),
        ("lung", rendering.LUNG),
        ("bone", rendering.BONE),
    ):
        assert json.loads(ranges[name]) == [window.low, window.high]
    for name in ("AIR_HU", "LUNG_HU", "BONE_HU"):
        assert number("windows.js", name) == getattr(rendering, f"_{name}")


def test_a_worker_is_silent_after_the_time_that_the_service_grants_it() -> None:
    assert number("service_strip.js", "SILENT_AFTER_S") == Settings.model_fields["cpu_standby_s"].default
