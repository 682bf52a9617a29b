"""The questions that complete an import, with a source that is made up."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from inference_service.cli.import_questions import answered
from inference_service.contract.manifest import Manifest
from inference_service.core.errors import BadRequest
from inference_service.core.settings import Settings
from inference_service.importers import questions
from inference_service.importers.request import ImportRequest
from inference_service.importers.short_config import Signature, complete

REQUEST = ImportRequest(Path("model.onnx"), "test", "1")


class Source:
    """A source that says something of its network, and the number of outputs once it has a window."""

    def __init__(self, signature: Signature, outputs: int | None = None) -> None:
        self._signature = signature
        self._outputs = outputs

    def describe(self, window: Sequence[int | None] | None = None) -> Signature:
        known = self._signature
        outputs = self._outputs if window and known.outputs is None else known.outputs
        return Signature(known.channels, outputs, known.window, known.labels, known.plane)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> "Answers":
    return Answers(monkeypatch)


class Answers:
    """Runs the questions with typed answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.printed = ""

    def of(self, source: Source | None, *typed: str, request: ImportRequest = REQUEST) -> dict[str, object] | None:
        self.patch(source)
        found: list[dict[str, object] | None] = []

        @click.command()
        def command() -> None:
            with answered(request, Settings(), interactive=True) as given:
                found.append(None if given.config is None else json.loads(given.config.read_text()))

        result = CliRunner().invoke(command, input="".join(f"{line}\n" for line in typed), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        self.printed = result.output
        return found[0]

    def patch(self, source: Source | None) -> None:
        @contextmanager
        def undescribed(path: Path, settings: Settings, time_limit_s: float) -> Iterator[Source | None]:
            yield source

        self._monkeypatch.setattr(questions, "undescribed", undescribed)


def manifest(config: dict[str, object], signature: Signature) -> Manifest:
    fields, _ = complete(config, signature, None)
    return Manifest.model_validate({"name": "a", "version": "1", "licence": "MIT", "sha256": "0" * 64, **fields})


def test_what_the_file_says_is_the_default(answers: Answers) -> None:
    signature = Signature(2, 3, (64, None, 32), ["air", "fat", "bone"])
    config = answers.of(Source(signature), "CT", *[""] * 10)
    assert config is not None
    model = manifest(config, signature)
    assert (model.window, model.orientation, model.activation) == ((64, None, 32), "RAS", "softmax")
    assert [label.name for label in model.labels] == ["air", "fat", "bone"]
    assert [channel["intensity"]["input"] for channel in config["channels"]] == [[-1000, 1000]] * 2  # type: ignore[attr-defined]


def test_answers_are_taken(answers: Answers) -> None:
    signature = Signature(1, None, None)
    typed = ["MR", "T1", "percentiles", "1 2 3", "1, 99", "lps", "1 any 2", "64 64 any", "sigmoid", "brain"]
    config = answers.of(Source(signature, outputs=1), *typed)
    assert config == {
        "modality": "MR",
        "channels": [{"name": "T1", "intensity": {"kind": "percentiles", "percentiles": [1, 99]}}],
        "orientation": "LPS",
        "spacing_mm": [1, None, 2],
        "window": [64, 64, None],
        "activation": "sigmoid",
        "labels": [{"name": "brain", "value": 1}],
    }
    assert manifest(config, signature).channel_names == ("T1",)


def test_nothing_is_asked_where_a_config_is_given_or_the_source_describes_itself(answers: Answers) -> None:
    assert answers.of(None) is None
    path = Path(__file__).with_name("test_import_questions.py")
    request = ImportRequest(Path("model.onnx"), "test", "1", config=path)
    with answered(request, Settings(), interactive=False) as given:
        assert given is request


@pytest.mark.parametrize(
    ("signature", "window"),
    [
        (Signature(1, 2, (8, 8, 8)), (8, 8, 8)),
        (Signature(None, None, None), (96, 96, 96)),
        (Signature(3, 4, None, plane=(256, None)), (256, None, 1)),
    ],
)
def test_where_nobody_answers_a_config_to_fill_in_is_printed(
    answers: Answers, signature: Signature, window: tuple[int | None, ...]
) -> None:
    answers.patch(Source(signature))
    with (
        pytest.raises(BadRequest, match="--config FILE") as refusal,
        answered(REQUEST, Settings(), interactive=False),
    ):
        pass
    config = json.loads(str(refusal.value).partition("\n")[2])
    model = manifest(config, signature)
    assert model.window == window
    assert len(model.channels) == (signature.channels or 1)


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"channels": "0"}, "greater than or equal to 1"),
        ({"channels": "1.5"}, "valid integer"),
        ({"channels": "10000"}, "less than or equal to 16"),
        ({"name": " "}, "at least 1 character"),
        ({"range": "0 nan"}, "finite number"),
        ({"range": "-inf 5"}, "finite number"),
        ({"range": "5 1"}, "expected two increasing numbers"),
        ({"range": "x 1"}, "valid number"),
        ({"range": "1"}, "expected 2 values, separated by spaces"),
        ({"orientation": "RAR"}, "orientation must contain one letter of each"),
        ({"spacing": "0 1 1"}, "greater than 0"),
        ({"spacing": "inf any any"}, "finite number"),
        ({"spacing": "nan any any"}, "finite number"),
        ({"window": "1.5 8 8"}, "valid integer"),
        ({"window": "inf 8 8"}, "valid integer"),
        ({"window": "-8 8 8"}, "greater than 0"),
        ({"labels": "a,,b"}, "expected a name for each output"),
        ({"labels": "a, b"}, "expected 3 names, one for each output of the network, got 2"),
        ({"labels": "a, b, b"}, "expected different names"),
        ({"labels": "a, b, \\"}, "should match pattern"),
    ],
)
def test_an_invalid_answer_is_asked_for_again_with_a_sentence(
    answers: Answers, bad: dict[str, str], sentence: str
) -> None:
    good = {
        "modality": "CT",
        "channels": "1",
        "name": "CT",
        "kind": "fixed_range",
        "range": "-1000 1000",
        "orientation": "kji",
        "spacing": "1 1 any",
        "window": "8 8 8",
        "activation": "softmax",
        "labels": "a, b, c",
    }
    typed = [line for question, answer in good.items() for line in (*filter(None, [bad.get(question)]), answer)]
    signature = Signature(None, None, None)
    config = answers.of(Source(signature, outputs=3), *typed)
    assert sentence in answers.printed
    assert config is not None
    model = manifest(config, replace(signature, channels=1, outputs=3))
    assert (model.orientation, model.spacing_mm, model.window) == ("kji", (1, 1, None), (8, 8, 8))
    assert [label.name for label in model.labels] == ["a", "b", "c"]


def test_percentiles_lie_between_0_and_100(answers: Answers) -> None:
    signature = Signature(1, 2, (8, 8, 8))
    config = answers.of(Source(signature), "MR", "T1", "percentiles", "1 101", "1 99", *[""] * 4)
    assert "less than or equal to 100" in answers.printed
    assert config is not None
    assert config["channels"][0]["intensity"]["percentiles"] == [1, 99]  # type: ignore[index]
