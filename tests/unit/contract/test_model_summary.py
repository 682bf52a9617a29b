import json

from manifests import VALID_MANIFEST

from inference_service.contract.manifest import Manifest
from inference_service.contract.model_summary import ChannelSummary, LabelSummary, ModelSummary
from inference_service.contract.palette import label_colour

INTENSITY = {"kind": "none"}


def summary(**fields: object) -> ModelSummary:
    return ModelSummary.of(Manifest.model_validate({**VALID_MANIFEST, **fields}))


def test_a_summary_has_the_fields_by_which_people_choose() -> None:
    labels = [
        {"name": "background", "value": 0},
        {"name": "lung", "value": 3},
        {"name": "tumour", "value": 1, "colour": [1, 2, 3]},
    ]
    found = summary(labels=labels, spacing_mm=[1.5, None, 2.0])
    assert (found.description, found.licence, found.intended_use, found.modality) == (
        "Lungs.",
        "Apache-2.0",
        "Tests.",
        "CT",
    )
    assert found.channels == (ChannelSummary(name="CT", modality="CT"),)
    assert found.spacing_mm == (1.5, None, 2.0)
    assert found.labels == (
        LabelSummary(value=3, name="lung", colour=label_colour(0)),
        LabelSummary(value=1, name="tumour", colour=(1, 2, 3)),
    )
    assert found.label_count == 2


def test_a_summary_names_each_scan_that_a_job_needs_once() -> None:
    channels = [
        {"name": "T1", "intensity": INTENSITY},
        {"name": "PET", "modality": "PT", "intensity": INTENSITY},
        {"name": "T1", "intensity": INTENSITY},
    ]
    assert summary(modality="MR", channels=channels).channels == (
        ChannelSummary(name="T1", modality="MR"),
        ChannelSummary(name="PET", modality="PT"),
    )


def test_the_spacing_is_that_of_the_first_part() -> None:
    parts = [{"networks": [{"file": f"{each}.onnx", "sha256": "ab" * 32}], "spacing_mm": [each] * 3} for each in (3, 1)]
    assert summary(parts=parts, sha256=None).spacing_mm == (3, 3, 3)


def test_a_strangers_manifest_is_cut() -> None:
    labels = [{"name": f"label {value}", "value": value} for value in range(5000)]
    found = summary(description="\0" + "é" * 10**6, licence="a" * 10**5, intended_use="b\x1b[2J\nc", labels=labels)
    assert found.description == "é" * 1999 + "…"
    assert len(found.licence) == 2000
    assert found.intended_use == "b[2J\nc"
    assert (len(found.labels), found.label_count) == (1000, 4999)


def test_a_summary_of_a_later_version_is_read() -> None:
    written = {**summary().model_dump(mode="json"), "homepage": "https://models.example"}
    assert ModelSummary.model_validate_json(json.dumps(written)) == summary()
