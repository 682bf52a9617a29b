"""The steps of a bundle's inference, found in its config."""

from collections.abc import Sequence
from dataclasses import dataclass

from inference_service.core.errors import ModelInvalid
from inference_service.importers.monai.bundle_config import BundleConfig
from inference_service.importers.monai.component import Component
from inference_service.importers.monai.values import Symbol, Value

_COMPOSE = "Compose"
_EVALUATOR = "SupervisedEvaluator"
# Arguments of an evaluator that change what the network gets, and MONAI's own values of them, which change nothing.
_CHANGES: dict[str, set[str]] = {
    "prepare_batch": {"default_prepare_batch", "PrepareBatchDefault"},
    "iteration_update": set(),
    "mode": {"eval", "EVAL"},
}


@dataclass(frozen=True)
class Workflow:
    """The steps of a bundle's inference.

    Attributes:
        preprocessing: Transforms, at least one.
        preprocessing_key: The key of their Compose.
        inferer: The inferer.
        postprocessing: Transforms.
        notes: What is assumed.
    """

    preprocessing: Sequence[Component]
    preprocessing_key: str
    inferer: Component
    postprocessing: Sequence[Component]
    notes: Sequence[str] = ()

    @classmethod
    def of(cls, config: BundleConfig) -> "Workflow":
        """Finds the steps: those that the evaluator names, or else the items with the usual names."""
        evaluator = _component(config.resolve("evaluator"))
        notes = _check_evaluator(evaluator)
        prepare = _transform(config, evaluator)
        preprocessing = _flat(config, "preprocessing", prepare)
        if not preprocessing:
            raise config.error(
                "preprocessing",
                "there is no preprocessing. A bundle that is imported segments a scan by transforms, a network and an "
                "inferer",
            )
        inferer = _item(config, evaluator, "inferer")
        if inferer is None and evaluator is not None:
            inferer = Component("SimpleInferer", f"{evaluator.key}#inferer", {}, lambda _, value: value, config.error)
        if not isinstance(inferer, Component):
            raise config.error("inferer", "there is no inferer")
        decide = _flat(config, "postprocessing", _item(config, evaluator, "postprocessing"))
        key = prepare.key if isinstance(prepare, Component) else "preprocessing"
        return cls(preprocessing, key, inferer, decide, notes)


def _component(value: Value) -> Component | None:
    return value if isinstance(value, Component) else None


def _item(config: BundleConfig, evaluator: Component | None, name: str) -> Value:
    """An argument of the evaluator; where it has none, the item of this name."""
    value = None if evaluator is None else evaluator.take(name)
    return config.resolve(name) if value is None else value


def _transform(config: BundleConfig, evaluator: Component | None) -> Value:
    """The transform of the evaluator's data set, or of the item `dataset`; where there is none, `preprocessing`."""
    dataset = _dataset(evaluator) or _component(config.resolve("dataset"))
    transform = None if dataset is None else dataset.take("transform")
    return config.resolve("preprocessing") if transform is None else transform


def _dataset(evaluator: Component | None) -> Component | None:
    """The data set of an evaluator; None where Python of the bundle makes it."""
    try:
        loader = None if evaluator is None else _component(evaluator.take("val_data_loader"))
        return None if loader is None else _component(loader.take("dataset"))
    except ModelInvalid:
        return None


def _check_evaluator(evaluator: Component | None) -> list[str]:
    """Refuses an evaluator that gives the network something else; returns what is assumed of one."""
    if evaluator is None:
        return []
    if evaluator.name == "EnsembleEvaluator":
        evaluator.refuse(
            "several networks of a bundle are not imported as one model; import each by a config of its own"
        )
    for argument, usual in _CHANGES.items():
        value = evaluator.take(argument)
        name = value.name if isinstance(value, Component | Symbol) else value if isinstance(value, str) else None
        if value is not None and (name is None or name.rpartition(".")[2] not in usual):
            evaluator.refuse("it changes what the network gets, which cannot be mapped to a manifest", argument)
    if evaluator.is_monai:
        return []
    return [f"{evaluator.key} is {evaluator.target}, which is not run; it is taken for a {_EVALUATOR}."]


def _flat(config: BundleConfig, key: str, values: Value) -> list[Component]:
    """The transforms of a Compose or a list, in order, and those of each Compose in it."""
    found = []
    for value in values if isinstance(values, list | tuple) else [values]:
        if value is None:
            continue
        if not isinstance(value, Component):
            raise config.error(key, "expected a list of transforms")
        if value.name == _COMPOSE:
            found.extend(_flat(config, value.key, value.take("transforms", [])))
        else:
            found.append(value)
    return found
