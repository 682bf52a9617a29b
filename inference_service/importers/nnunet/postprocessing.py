"""The postprocessing that nnU-Net determined: components of labels that are removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolation import Isolation
from inference_service.importers.nnunet.fields import Fields, Json, read_json
from inference_service.importers.nnunet.results_folder import CROSS_VALIDATION, ResultsFolder

LARGEST_COMPONENT = "remove_all_but_largest_component_from_segmentation"
_JSON, _PICKLE = "postprocessing.json", "postprocessing.pkl"
_MAX_VALUE = 65535
_MAX_STEPS = 4096


@dataclass(frozen=True)
class Postprocessing:
    """The steps after a prediction.

    Attributes:
        steps: Labels that together keep their largest component alone, one list for each step.
        place: The file that they come from; empty: there is none.
        notes: Sentences for the model's card.
    """

    steps: Sequence[Sequence[int]] = ()
    place: str = ""
    notes: Sequence[str] = ()

    def manifest_steps(self) -> list[dict[str, object]]:
        """Returns the field `postprocessing` of a manifest."""
        return [{"step": "largest_component", "labels": list(labels), "together": True} for labels in self.steps]


def find_postprocessing(folder: ResultsFolder, folds: Sequence[str], isolation: Isolation) -> Postprocessing:
    """Finds the postprocessing that nnU-Net determined for a configuration with these folds.

    Args:
        folder: The results folder.
        folds: The folds of the model.
        isolation: Where a pickle is read.

    Raises:
        ModelInvalid: It is damaged, or has another step than the largest component.
    """
    results = folder.path / f"{CROSS_VALIDATION}{'_'.join(folds)}"
    if (results / _JSON).is_file():
        return _read(read_json(results / _JSON), results / _JSON)
    if (results / _PICKLE).is_file():
        task = {"file": str((results / _PICKLE).resolve())}
        found = isolation.run("read_postprocessing", task).result
        values: dict[str, Json] = {
            key: _json(found.get(key)) for key in ("postprocessing_fns", "postprocessing_kwargs")
        }
        return _read(Fields(values, _PICKLE), results / _PICKLE)
    others = sorted(path.parent.name for path in folder.path.glob(f"{CROSS_VALIDATION}*/postprocessing.*"))
    if not others:
        return Postprocessing()
    return Postprocessing(notes=(f"The postprocessing in {others[0]} is left out: it is that of other folds.",))


def _read(fields: Fields, path: Path) -> Postprocessing:
    functions, arguments = fields.items("postprocessing_fns"), fields.items("postprocessing_kwargs")
    if len(functions) != len(arguments) or len(functions) > _MAX_STEPS:
        fields.refuse("postprocessing_kwargs", "expected one object for each step")
    steps = []
    for function, given in zip(functions, arguments, strict=True):
        if function != LARGEST_COMPONENT:
            fields.refuse("postprocessing_fns", f"{str(function)[:200]} is not supported")
        if not isinstance(given, dict) or set(given) - {"labels_or_regions", "background_label"}:
            fields.refuse("postprocessing_kwargs", "expected labels_or_regions alone")
        if given.get("background_label", 0) != 0:
            fields.refuse("postprocessing_kwargs", "removed voxels must become 0")
        steps.append(sorted(_labels(fields, given.get("labels_or_regions")) - {0}))
    return Postprocessing([labels for labels in steps if labels], f"{path.parent.name}/{path.name}")


def _labels(fields: Fields, value: Json, depth: int = 2) -> set[int]:
    """The values of a label, of a region, or of a list of both."""
    if depth and isinstance(value, list) and len(value) <= _MAX_STEPS:
        return {label for each in value for label in _labels(fields, each, depth - 1)}
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_VALUE:
        fields.refuse("postprocessing_kwargs", f"expected whole numbers from 0 to {_MAX_VALUE}")
    return {value}


def _json(value: object) -> Json:
    if isinstance(value, list | dict):
        return value
    raise ModelInvalid(f"{_PICKLE} has not the form that nnU-Net gives it")
