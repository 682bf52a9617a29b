"""Puts the parts of a bundle together: manifest, network, card and reference."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from pathlib import Path

from inference_service.contract.part import NETWORK_FILE
from inference_service.core.errors import InputNotFound
from inference_service.importers.monai.bundle_config import BundleConfig
from inference_service.importers.monai.component import Component
from inference_service.importers.monai.config_file import look_up
from inference_service.importers.monai.inference import map_inferer
from inference_service.importers.monai.labels import channel_names, check_counts, label_fields, modality
from inference_service.importers.monai.network import (
    CHECKPOINT_FILE,
    DEFAULT_CHECKPOINT,
    Json,
    channel_count,
    code_module,
    dimensions,
    find_checkpoint,
    least_multiple,
    network_arguments,
)
from inference_service.importers.monai.postprocessing import Decision
from inference_service.importers.monai.preprocessing import Preparation
from inference_service.importers.monai.reference import reference_config
from inference_service.importers.monai.values import Value
from inference_service.importers.monai.workflow import Workflow
from inference_service.importers.source_files import licence_of
from inference_service.importers.sources import (
    ImportedModel,
    ImportOptions,
    NetworkRecipe,
    Reference,
    Taken,
    tried_size,
)

KIND = "MONAI bundle"
_USUAL_MODULES = {"glob", "os", "numpy", "torch", "monai", "sys", "json", "math", "pathlib", "pandas", "pd", "np", "re"}
_FACTS = {
    "name": "Name",
    "version": "Version",
    "authors": "Authors",
    "copyright": "Copyright",
    "data_source": "Data",
    "image_classes": "Images",
    "pred_classes": "Labels, as the source describes them",
    "intended_use": "Intended use",
}
_MAX_FACT = 2000
_WEIGHTS = (".pt", ".pth")


@dataclass(frozen=True)
class Bundle:
    """The files of a bundle.

    Attributes:
        config: The config of its inference.
        metadata: Content of metadata.json, empty where there is none.
        source: The folder, or the TorchScript file.
    """

    config: BundleConfig
    metadata: Mapping[str, Value]
    source: Path


class BundleModel:
    """Puts the parts of a bundle together."""

    def __init__(
        self,
        bundle: Bundle,
        options: ImportOptions,
        workflow: Workflow,
        network: Component | None,
        preparation: Preparation,
        decision: Decision,
    ) -> None:
        self._bundle = bundle
        self._config = bundle.config
        self._given = options.labels
        self._preparation = preparation
        self._decision = decision
        self._workflow = workflow
        self._first = workflow.preprocessing[0]
        self._network = network
        self._dimensions = 3 if self._network is None else dimensions(self._network)
        counts: tuple[int | None, int | None] = (None, None)
        if network is not None:
            counts = channel_count(network, "in_channels"), channel_count(network, "out_channels", "num_classes")
        self._inputs, self._outputs = check_counts(
            bundle.metadata, inputs=counts[0], outputs=counts[1], labels_given=options.labels is not None
        )

    def imported(self) -> ImportedModel:
        """Returns the model."""
        inferer = self._workflow.inferer
        windows = map_inferer(inferer, self._preparation.padding)
        names = channel_names(self._bundle.metadata, self._inputs)
        prepared = self._preparation.fields(names, self._first)
        decided = self._decision.fields(self._outputs)
        if self._network is not None and inferer.name == "SimpleInferer":
            windows["multiple_of"] = lcm(int(str(windows.get("multiple_of", 1))), least_multiple(self._network))
        labels, labels_from = label_fields(
            self._bundle.metadata,
            self._named_labels(),
            self._outputs,
            self._decision,
            self._given,
        )
        metadata = self._bundle.metadata
        manifest = {
            "description": _text(metadata, "description") or _text(metadata, "name") or "A MONAI bundle",
            "intended_use": _text(metadata, "intended_use") or "Not stated by the source. Not a medical device.",
            "modality": modality(metadata),
            **prepared,
            **windows,
            **decided,
            **labels,
            "postprocessing": self._steps(labels),
        }
        return ImportedModel(
            kind=KIND,
            manifest=manifest,
            networks=(self._recipe(windows),),
            licence=licence_of(self._bundle.source),
            taken=self._taken(inferer, labels_from),
            assumed=self._assumed(str(manifest["modality"])),
            facts=self._facts(),
            reference=Reference("monai_bundle", self._reference(manifest)),
            code=[self._network.target] if self._network is not None and self._runs_code else [],
        )

    @property
    def _runs_code(self) -> bool:
        return self._network is not None and not self._network.is_monai

    @property
    def _builder(self) -> str:
        if self._network is None:
            return "torchscript"
        return "bundle_network" if self._runs_code else "monai_network"

    def _named_labels(self) -> Value:
        """The labels that the config names; None where an item of such a name is anything else, such as files."""
        for key in ("labels", "label_names"):
            if isinstance(self._config.items.get(key), Mapping):
                return self._config.resolve(key)
        return None

    def _steps(self, labels: Mapping[str, object]) -> list[dict[str, object]]:
        if self._outputs > 1 and self._decision.on_channels is not None:
            self._decision.on_channels.refuse(
                "it looks at channels that may overlap, and a manifest's postprocessing at labels that do not"
            )
        # The labels of one channel are 0 and 1.
        first = 1 if self._outputs == 1 else 0
        named = {first + int(str(output["channel"])): output["value"] for output in _objects(labels["outputs"])}
        steps = []
        for step in self._decision.steps:
            applied = step["labels"]
            chosen = {named.get(channel) for channel in (named if applied is None else _integers(applied))}
            steps.append({**step, "labels": sorted(each for each in chosen if isinstance(each, int) and each != 0)})
        return [step for step in steps if step["labels"]]

    def _recipe(self, windows: Mapping[str, object]) -> NetworkRecipe:
        window = [size for size in _sizes(windows["window"]) if self._dimensions == 3 or size != 1]
        multiple = windows.get("multiple_of", 1)
        size = tried_size(window, multiple if isinstance(multiple, int) else 1)
        return NetworkRecipe(
            file=NETWORK_FILE,
            builder=self._builder,
            arguments=self._builder_arguments(),
            input_shape=(self._inputs, *size),
            free_axes=tuple(axis for axis, size in enumerate(window) if size is None),
        )

    def _builder_arguments(self) -> dict[str, object]:
        if self._network is None:
            return {"file": str(self._bundle.source)}
        path, name = find_checkpoint(self._config)
        source = self._bundle.source
        checkpoint = self._only_checkpoint or source / path
        if not checkpoint.is_file():
            checkpoint = source if source.is_file() else source / "models" / "model.ts"
        if not checkpoint.is_file():
            raise InputNotFound(
                f"the bundle has no {path}, from which its weights are loaded; where large_files.yml lists it, "
                "download it first"
            )
        arguments = self._with_files(network_arguments(self._network))
        made_with = _text(self._bundle.metadata, "monai_version")
        built = {"arguments": arguments, "checkpoint": str(checkpoint), "entry": name, "made_with": made_with}
        if not self._runs_code:
            return {"network": self._network.class_name, **built}
        module = code_module(self._network, self._config)
        return {"module": module, "class": self._network.class_name, "folder": str(source), **built}

    @property
    def _only_checkpoint(self) -> Path | None:
        """The only file with weights in the bundle's folder of models, where its config names none that is there."""
        path, _ = find_checkpoint(self._config)
        found = [path for path in self._bundle.source.glob("models/*") if path.suffix in _WEIGHTS]
        return found[0] if path == DEFAULT_CHECKPOINT and len(found) == 1 and found[0].name != path.name else None

    def _with_files(self, arguments: Json) -> Json:
        """Arguments in which each file of the bundle is named by its path here."""
        if isinstance(arguments, list):
            return [self._with_files(each) for each in arguments]
        if not isinstance(arguments, dict):
            return arguments
        if CHECKPOINT_FILE in arguments:
            written = str(arguments[CHECKPOINT_FILE])
            path = self._config.find_file(written)
            if path is None:
                raise InputNotFound(f"the bundle has no {written}, from which arguments of its network are loaded")
            return {**arguments, CHECKPOINT_FILE: str(self._bundle.source / path)}
        return {name: self._with_files(value) for name, value in arguments.items()}

    def _reference(self, manifest: Mapping[str, object]) -> dict[str, object]:
        workflow = self._workflow
        return {
            "config": reference_config(
                self._preparation.used, workflow.inferer, self._decision.used, workflow.preprocessing_key
            ),
            "builder": self._builder,
            "network": self._builder_arguments(),
            "images": self._preparation.images,
            "outputs": manifest["outputs"],
        }

    def _taken(self, inferer: Component, labels_from: str) -> list[Taken]:
        network = "the TorchScript file" if self._network is None else f"{self._config.name}, {self._network.key}"
        return [
            Taken("channels, orientation, spacing and intensities", f"{self._config.name}, {self._first.key}"),
            Taken("windows, overlap and blending", f"{self._config.name}, {inferer.key}"),
            Taken("the decision on labels", f"{self._config.name}, postprocessing"),
            Taken("names of labels", labels_from),
            Taken("the network", network),
            Taken("its weights", str(find_checkpoint(self._config)[0])),
        ]

    def _assumed(self, stated_modality: str) -> list[str]:
        notes = [*self._workflow.notes, *self._preparation.notes, *self._decision.notes]
        if stated_modality == "other":
            notes.append("The modality is `other`: metadata.json does not say it, or says another one.")
        for module in [] if self._runs_code else _own_modules(self._config):
            notes.append(f"The config imports {module}, which is not run; nothing that was imported uses it.")
        if self._network is not None and (only := self._only_checkpoint):
            notes.append(f"The weights are those of {only.name}, the only such file of the bundle.")
        for component in self._decision.skipped:
            notes.append(f"{component.key} ({component.name}) is left out: the labels are those of --labels.")
        return notes

    def _facts(self) -> dict[str, str]:
        return {
            heading: text
            for field, heading in _FACTS.items()
            if (text := _text(self._bundle.metadata, field)) is not None
        }


def _own_modules(config: BundleConfig) -> list[str]:
    """Modules that the config imports and that are neither Python's nor MONAI's."""
    imports = config.items.get("imports")
    found = []
    for line in imports if isinstance(imports, list) else [imports]:
        match = re.fullmatch(r"\$\s*(?:import|from)\s+([\w.]+).*", line) if isinstance(line, str) else None
        if match and match[1].split(".")[0] not in _USUAL_MODULES:
            found.append(match[1])
    return found


def _text(metadata: Mapping[str, Value], field: str) -> str | None:
    value = look_up(metadata, field)
    return value.strip()[:_MAX_FACT] if isinstance(value, str) and value.strip() else None


def _objects(value: object) -> list[Mapping[str, object]]:
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


def _integers(value: object) -> Sequence[int]:
    return [each for each in value if isinstance(each, int)] if isinstance(value, list) else []


def _sizes(value: object) -> list[int | None]:
    return [each if isinstance(each, int) else None for each in value] if isinstance(value, tuple | list) else []
