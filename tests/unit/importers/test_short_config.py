import json
from pathlib import Path

import pytest

from inference_service.core.errors import InputNotFound, ModelInvalid
from inference_service.importers.short_config import Signature, complete, read_short_config
from inference_service.importers.sources import LabelChoice


def test_what_is_not_stated_is_assumed_and_said() -> None:
    manifest, assumed = complete({}, Signature(2, 3, (64, None, 32)), None)
    assert [channel["name"] for channel in manifest["channels"]] == ["channel 0", "channel 1"]  # type: ignore[attr-defined]
    assert (manifest["window"], manifest["activation"]) == ([64, None, 32], "softmax")
    assert [label["name"] for label in manifest["labels"]] == ["background", "label 1", "label 2"]  # type: ignore[attr-defined]
    assert len(assumed) == 6


def test_what_is_stated_stays() -> None:
    config = {"channels": [{"name": "T1"}], "orientation": "LPS", "window": [1, 2, 3], "activation": "sigmoid"}
    manifest, assumed = complete(config, Signature(1, 1, (9, 9, 9), ["brain"]), None)
    assert manifest["labels"] == [{"name": "brain", "value": 1}]
    assert manifest.items() >= config.items()
    assert len(assumed) == 3


def test_given_labels_come_first() -> None:
    given = LabelChoice.model_validate({"labels": [{"name": "a", "value": 3}], "outputs": [{"channel": 0, "value": 3}]})
    config = {"window": [1, 1, 1], "labels": [{"name": "b", "value": 1}], "outputs": []}
    manifest, _ = complete(config, Signature(1, 1, None), given)
    assert (manifest["labels"], manifest["outputs"]) == ([{"name": "a", "value": 3}], [{"channel": 0, "value": 3}])


def test_there_is_a_label_for_each_output() -> None:
    labels = [{"name": "background", "value": 0}, {"name": "brain", "value": 1}]
    with pytest.raises(ModelInvalid, match="states 2 labels, and the network has 3 output channels"):
        complete({"labels": labels}, Signature(1, 3, (1, 1, 1)), None)
    mapped = {"labels": labels, "outputs": [{"channel": 2, "value": 1}]}
    assert complete(mapped, Signature(1, 3, (1, 1, 1)), None)[0]["outputs"] == mapped["outputs"]


@pytest.mark.parametrize(
    ("signature", "named"),
    [
        (Signature(1, 2, None), "window"),
        (Signature(None, 2, (1, 1, 1)), "channels"),
        (Signature(1, None, (1, 1, 1)), "labels"),
    ],
)
def test_what_cannot_be_assumed_is_asked_for(signature: Signature, named: str) -> None:
    with pytest.raises(ModelInvalid, match=f"state `{named}`"):
        complete({}, signature, None)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"sha256": "x"})])
def test_an_invalid_config_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "short.json"
    path.write_text(content)
    with pytest.raises(ModelInvalid, match=r"short\.json"):
        read_short_config(path)
    with pytest.raises(InputNotFound):
        read_short_config(tmp_path / "none.json")
