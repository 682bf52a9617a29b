"""Puts a model of TotalSegmentator together: a part for each data set, in its own pipeline around nnU-Net's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from inference_service.contract.part import NETWORK_FILE
from inference_service.core.errors import BadRequest, ModelInvalid
from inference_service.engine.model_registry import find_model
from inference_service.importers.nnunet.model import Stage, open_stage
from inference_service.importers.nnunet.results_folder import choose, find_folders
from inference_service.importers.sources import ImportedModel, ImportOptions, NetworkRecipe, Reference, Taken
from inference_service.importers.totalsegmentator.label_table import find_label_table, read_label_table
from inference_service.importers.totalsegmentator.tasks import VERSION, Task, choose_task, is_known
from inference_service.importers.totalsegmentator.weights import find_weights, opened

KIND = "TotalSegmentator weights"
_FIRST_FOLD = ("0",)
# TotalSegmentator brings every scan to RAS; nnU-Net's readers then give the arrays slowest axis first.
_DIRECTIONS = str.maketrans("kji", "SAR")
_PIPELINE = f"TotalSegmentator {VERSION}"


@dataclass(frozen=True)
class _Network:
    """The network of one part.

    Attributes:
        dataset: Name of its data set.
        stage: Its results folder.
        values: The value of each output channel in the mask.
    """

    dataset: str
    stage: Stage
    values: Sequence[int]

    def files(self, *, only: bool) -> list[str]:
        """Returns the names of the ONNX files; `only` is for the only network of a model."""
        if self.stage.has_one_file:
            return [NETWORK_FILE if only else f"{self.dataset}.onnx"]
        return [f"{self.dataset}_fold_{fold}.onnx" for fold in self.stage.folds]

    def recipes(self, *, only: bool) -> list[NetworkRecipe]:
        """Returns how the networks are built."""
        recipes = zip(self.stage.recipes(only=only), self.files(only=only), strict=True)
        return [replace(recipe, file=file) for recipe, file in recipes]


class TotalSegmentatorModel:
    """The importer of TotalSegmentator's weights: a data set, the folder with all parts of a task, or zips of them."""

    kind = KIND
    options = frozenset({"checkpoint", "configuration", "crop_by", "folds", "label_table", "roi", "task"})

    def recognises(self, source: Path) -> bool:
        """See `Importer`."""
        return bool(find_weights(source).places)

    def read(self, source: Path, options: ImportOptions) -> ImportedModel:
        """See `Importer`."""
        datasets = find_weights(source).datasets(chosen=options.task is not None)
        task = choose_task(datasets, options.task)
        networks: list[_Network] = []
        for dataset in task.datasets:
            stage = _open(opened(dataset, datasets[dataset], options.scratch), task, options)
            _check_name(dataset, stage.plans.dataset)
            networks.append(_Network(dataset, stage, _values(stage, networks)))
        _check(task, networks)
        return _Model(task, networks, options).imported(datasets)


def _open(folder: Path, task: Task, options: ImportOptions) -> Stage:
    """Opens the results folder of a data set, with the folds that TotalSegmentator uses."""
    chosen = choose(folder, options.configuration, options.folds)
    folds = chosen.folds or (None if task.all_folds else _FIRST_FOLD)
    stage = open_stage(chosen.folder, folds, options)
    return replace(stage, notes=(*chosen.notes, *stage.notes))


def _check_name(dataset: str, stated: str) -> None:
    if stated != dataset and is_known(stated):
        raise ModelInvalid(
            f"a folder is called {dataset}, and its plans.json is of {stated}, which TotalSegmentator treats "
            "differently: give the folder the name of the data set that it holds"
        )


def _values(stage: Stage, before: Sequence[_Network]) -> list[int]:
    """The values of a part's labels, which follow those of the parts before."""
    start = sum(len(network.values) - 1 for network in before)
    return [output.value + start if output.value else 0 for output in stage.dataset.outputs]


def _check(task: Task, networks: Sequence[_Network]) -> None:
    """Checks that the parts are those of the task, and can run on one preparation of the scan."""
    first = networks[0].stage.configuration
    for network, count in zip(networks, task.counts or [None] * len(networks), strict=True):
        stage = network.stage
        if stage.dataset.has_regions or stage.configuration.previous_stage or stage.configuration.dimensions != 3:
            raise ModelInvalid(f"{network.dataset} has regions, stages or planes, as no model of TotalSegmentator has")
        if count is not None and len(network.values) - 1 != count:
            raise ModelInvalid(
                f"{network.dataset} has {len(network.values) - 1} labels, and TotalSegmentator's {task.name} {count}"
            )
        if task.resampled and stage.configuration.spacing_mm != first.spacing_mm:
            raise ModelInvalid(
                f"{network.dataset} has a spacing of {list(stage.configuration.spacing_mm)} mm, and the part before it "
                f"of {list(first.spacing_mm)} mm: TotalSegmentator resamples the scan once for all parts"
            )
        if stage.dataset.channels != networks[0].stage.dataset.channels or len(stage.dataset.channels) > 1:
            raise ModelInvalid(f"{network.dataset} has other channels than one scan: {stage.dataset.channels[:8]}")
    if any(set(task.removed) - set(network.values) for network in networks):
        raise ModelInvalid(f"{networks[0].dataset} lacks labels that TotalSegmentator removes: {list(task.removed)}")


class _Model:
    """A task with its opened networks.

    Args:
        task: The task.
        networks: Its networks, in order.
        options: What is asked for.
    """

    def __init__(self, task: Task, networks: Sequence[_Network], options: ImportOptions) -> None:
        self._task = task
        self._options = options
        self._names = _label_names(networks)
        self._kept = self._kept_labels()
        self._networks = [each for each in networks if not self._kept.isdisjoint(each.values)]
        self._notes: list[str] = []

    def imported(self, datasets: Mapping[str, Path]) -> ImportedModel:
        """Returns the model."""
        first = self._networks[0].stage
        modality = first.dataset.modalities()[0] or self._task.modality
        only = len(self._networks) == 1
        parts = [self._part_fields(network, only=only) for network in self._networks]
        # What the first part says holds for those after it too.
        shared = parts[0] if only else {key: value for key, value in parts[0].items() if key not in _OWN}
        manifest: dict[str, object] = {
            "description": f"TotalSegmentator, task {self._task.name}.",
            "intended_use": "Not stated by the source. Not a medical device.",
            "modality": modality,
            "activation": "softmax",
            **shared,
            "labels": self._labels(),
            "postprocessing": self._postprocessing(),
        }
        if not only:
            manifest["parts"] = [
                {key: value for key, value in part.items() if key in _OWN or shared[key] != value} for part in parts
            ]
        networks = [network.stage for network in self._networks]
        return ImportedModel(
            kind=KIND,
            manifest=manifest,
            networks=[recipe for network in self._networks for recipe in network.recipes(only=only)],
            taken=self._taken(),
            assumed=[*self._notes, *self._assumed(), *(note for stage in networks for note in stage.notes)],
            facts={
                "Task": self._task.name,
                "Data sets": ", ".join(network.dataset for network in self._networks),
                "Trainer": ", ".join(sorted({stage.checkpoints[0].trainer for stage in networks})),
                "Configuration": ", ".join(sorted({stage.configuration.name for stage in networks})),
                "Folds": ", ".join(sorted({fold for stage in networks for fold in stage.folds})),
                "Mirroring": "none, as in TotalSegmentator",
            },
            reference=self._reference(datasets),
        )

    def _kept_labels(self) -> set[int]:
        names = {name: value for value, name in self._names.items() if value}
        if not self._options.roi:
            return {value for value in self._names if value not in (0, *self._task.removed)}
        unknown = [name for name in self._options.roi if name not in names]
        if unknown:
            raise BadRequest(f"the task {self._task.name} has no label {', '.join(unknown)}")
        return {names[name] for name in self._options.roi}

    def _part_fields(self, network: _Network, *, only: bool) -> dict[str, object]:
        stage = network.stage
        channels = [{"name": name} for name in stage.dataset.channels]
        fields = stage.part_fields(channels, mirroring=False, only=True)
        fields |= {
            "orientation": stage.configuration.orientation.translate(_DIRECTIONS),
            "overlap": self._task.overlap,
            "outputs": [
                {"channel": channel, "value": value if value in self._kept else 0}
                for channel, value in enumerate(network.values)
            ],
        }
        if self._task.resampled:
            fields |= {
                "grid": "centres",
                "interpolation": "linear",
                "truncate_resampled": True,
                "intensity_before_resampling": False,
                "separate_axis_above": None,
                "crop": {"kind": "nonzero", "prepared": True},
                "logits_interpolation": "nearest",
            }
        if (crop := self._crop()) is not None:
            fields["crop"] = [crop, fields["crop"]] if self._task.resampled else crop
        files = network.files(only=only)
        return fields if files == [NETWORK_FILE] else {**fields, "networks": [{"file": file} for file in files]}

    def _crop(self) -> dict[str, object] | None:
        """The crop to what an installed model finds, if one is given."""
        name, _, version = (self._options.crop_by or "").partition("/")
        if not name:
            return None
        found = find_model(self._options.models_path, name, version or None).manifest
        wanted = self._options.roi or self._task.crop
        if not wanted:
            raise BadRequest(f"--crop-by needs --roi: TotalSegmentator does not crop the scan for {self._task.name}")
        values = {label.name: label.value for label in found.labels}
        unknown = [label for label in wanted if label not in values]
        if unknown:
            raise BadRequest(f"model {found.name} {found.version} has no label {', '.join(unknown)}")
        return {
            "kind": "model",
            "model": found.name,
            "version": found.version,
            "labels": sorted(values[label] for label in wanted),
            "margin_mm": self._task.margin_mm,
            "if_empty": "nothing",
        }

    def _labels(self) -> list[dict[str, object]]:
        path = find_label_table(self._options.label_table)
        table = {} if path is None else read_label_table(path)
        names = {value: name for value, name in self._names.items() if value == 0 or value in self._kept}
        if path is None:
            self._notes.append(
                "Labels have no codes and no colours of their own: TotalSegmentator is not installed, and no "
                "--label-table is given."
            )
        elif missing := [name for value, name in names.items() if value and name not in table]:
            more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            self._notes.append(f"{path.name} does not have {', '.join(missing[:4])}{more}: they have no codes.")
        return [{"name": name, "value": value, **table.get(name, {})} for value, name in names.items()]

    def _postprocessing(self) -> list[dict[str, object]]:
        steps = [dict(step) for step in self._task.postprocessing]
        return [step for step in steps if self._kept.issuperset(_integers(step["labels"]))]

    def _taken(self) -> list[Taken]:
        own = "grid, truncate_resampled, crop, " if self._task.resampled else ""
        table = find_label_table(self._options.label_table)
        return [
            Taken("networks", f"checkpoint_{self._options.checkpoint}.pth of each data set"),
            Taken("spacing_mm, window, intensities", "plans.json of each data set"),
            Taken("labels, outputs", "dataset.json of each data set, one after the other"),
            Taken(f"{own}orientation, overlap, postprocessing", f"{_PIPELINE}, task {self._task.name}"),
            Taken("blending", "nnU-Net's predictor, the same for all models"),
            *([] if table is None else [Taken("codes and colours", table.name)]),
        ]

    def _assumed(self) -> list[str]:
        task = self._task
        called = ", ".join(task.datasets)
        notes = [
            f"The source is TotalSegmentator's, as it has the data set {called}, and its pipeline is taken. "
            "--task nnunet takes nnU-Net's own.",
            "The licence is the one that was given: TotalSegmentator's tasks have different ones.",
        ]
        if not task.known and not task.counts:
            notes.append(
                f"{_PIPELINE} does not have the data set {task.name}: the scan is not cropped, windows overlap by half."
            )
        if task.crop and not self._options.crop_by:
            notes.append(
                f"TotalSegmentator crops the scan to {', '.join(task.crop)}, as its task {task.crop_task} finds them. "
                "Here it is whole: --crop-by names an installed model of that task."
            )
        if self._options.crop_by and not task.resampled:
            notes.append("nnU-Net's crop to non-zero voxels, within the crop to the other model's labels, is left out.")
        if len(self._networks) > 1:
            notes.append("TotalSegmentator cuts scans of over 236 million voxels at the model's spacing in three.")
        return notes

    def _reference(self, datasets: Mapping[str, Path]) -> Reference | None:
        """TotalSegmentator itself, if it has the task and crops the scan where this model does."""
        if not self._task.known or (bool(self._task.crop or self._options.roi) != bool(self._options.crop_by)):
            return None
        results = {network.dataset: network.stage.folder.path for network in self._networks}
        others = {
            name: found[0].path
            for name, path in datasets.items()
            if name not in results and len(found := find_folders(path)) == 1
        }
        name = self._task.name
        mode = next((mode for mode in ("fastest", "fast") if name.endswith(f"_{mode}")), None)
        return Reference(
            "totalsegmentator",
            {
                "results": {dataset: str(path.resolve()) for dataset, path in {**others, **results}.items()},
                "task": name if mode is None else name.removesuffix(f"_{mode}"),
                "mode": mode,
                "roi": list(self._options.roi),
            },
            shares_memory=True,
        )


# Fields that belong to each part by itself.
_OWN = ("networks", "outputs")


def _label_names(networks: Sequence[_Network]) -> dict[int, str]:
    """The name of each value; of the background, that of the first part."""
    names: dict[int, str] = {}
    for network in networks:
        for output, value in zip(network.stage.dataset.outputs, network.values, strict=True):
            names.setdefault(value, output.name)
    repeated = [name for value, name in names.items() if list(names.values()).count(name) > 1]
    if repeated:
        raise ModelInvalid(f"two parts have a label {repeated[0]!r}: they are not parts of one task")
    return names


def _integers(value: object) -> list[int]:
    return [each for each in value if isinstance(each, int)] if isinstance(value, list) else []
