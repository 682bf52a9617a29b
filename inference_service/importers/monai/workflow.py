"""The steps of a bundle's inference, found in its config."""

from collections.abc import Sequence
from dataclasses import dataclass

from inference_service.importers.monai.bundle_config import BundleConfig
from inference_service.importers.monai.component import Component
from inference_service.importers.monai.values import Value

_COMPOSE = "Compose"


@dataclass(frozen=True)
class Workflow:
    """The steps of a bundle's inference.

    Attributes:
        preprocessing: Transforms, at least one.
        preprocessing_key: The key of their Compose.
        inferer: The inferer.
        postprocessing: Transforms.
    """

    preprocessing: Sequence[Component]
    preprocessing_key: str
    inferer: Component
    postprocessing: Sequence[Component]

    @classmethod
    def of(cls, config: BundleConfig) -> "Workflow":
        """Finds the steps: items with the usual names, or what the usual items refer to."""
        prepare = _item(config, "preprocessing", "dataset", "transform")
        preprocessing = _flat(config, "preprocessing", prepare)
        if not preprocessing:
            raise config.error(
                "preprocessing",
                "there is no preprocessing. A bundle that is imported segments a scan by transforms, a network and an "
                "inferer",
            )
        inferer = _item(config, "inferer", "evaluator", "inferer")
        if not isinstance(inferer, Component):
            raise config.error("inferer", "there is no inferer")
        decide = _item(config, "postprocessing", "evaluator", "postprocessing")
        key = prepare.key if isinstance(prepare, Component) else "preprocessing"
        return cls(preprocessing, key, inferer, _flat(config, "postprocessing", decide))


def _item(config: BundleConfig, key: str, owner: str, argument: str) -> Value:
    """An item of the config; where there is none of that name, the argument of another one."""
    if key in config:
        return config.resolve(key)
    value = config.resolve(owner) if owner in config else None
    return value.take(argument) if isinstance(value, Component) else None


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
