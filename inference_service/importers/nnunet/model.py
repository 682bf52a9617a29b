"""Puts the parts of a results folder together: manifest, networks, card and reference."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference_service.contract.part import NETWORK_FILE
from inference_service.core.errors import InputNotFound, ModelInvalid
from inference_service.importers.isolation import Isolation
from inference_service.importers.nnunet.cross_validation import find_cross_validation
from inference_service.importers.nnunet.dataset import Dataset
from inference_service.importers.nnunet.plans import Configuration, Plans
from inference_service.importers.nnunet.postprocessing import Postprocessing, find_postprocessing
from inference_service.importers.nnunet.results_folder import Chosen, ResultsFolder, choose, choose_folds, find_folders
from inference_service.importers.source_files import licence_of, require_confined
from inference_service.importers.sources import ImportedModel, ImportOptions, NetworkRecipe, Reference, Taken

KIND = "nnU-Net results folder"
BUILDER = "nnunet_network"
# nnU-Net's own trainers: their names are made of these pieces. Others may change the network.
_OWN_TRAINER = re.compile(
    r"nnUNetTrainer(_?(\d+ep(ochs?)?|\den\d|0\d\d|NoMirroring|onlyMirror01|(no)?Dummy2DDA|DA5?|NoDA|Seg|[oO]rd0|warmup"
    r"|Vanilla|Ada[mn]|CosAnneal|BN|NoDeepSupervision|CE|Dice|Top[kK]10|Loss|LS01|noSmooth|Benchmark|noDataLoading"
    r"|probabilisticOversampling))*+"
)
# An ONNX file has at most 2 GiB, and a weight 4 bytes.
_MAX_WEIGHTS_OF_A_FILE = 450_000_000


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint says about itself.

    Attributes:
        path: The file.
        trainer: Name of the class that trained it.
        configuration: The configuration.
        mirror_axes: Axes along which mirrored windows may be averaged, counted over those of the window.
        inputs: Channels of the network's input.
        outputs: Channels of its output.
        weights: Number of its weights.
    """

    path: Path
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]
    inputs: int
    outputs: int
    weights: int


@dataclass(frozen=True)
class Stage:
    """A configuration with its folds.

    Attributes:
        folder: The results folder.
        plans: Its plans.
        configuration: The configuration.
        dataset: The data set.
        folds: The folds.
        checkpoints: The checkpoint of each fold.
        notes: Sentences for the model's card.
    """

    folder: ResultsFolder
    plans: Plans
    configuration: Configuration
    dataset: Dataset
    folds: Sequence[str]
    checkpoints: Sequence[Checkpoint]
    notes: Sequence[str] = ()

    @property
    def has_one_file(self) -> bool:
        """True if all folds become one network: ONNX Runtime then needs the memory of one fold, not of all."""
        return len(self.folds) == 1 or sum(each.weights for each in self.checkpoints) <= _MAX_WEIGHTS_OF_A_FILE

    @property
    def mirror_axes(self) -> list[int]:
        """Axes along which the training allows mirroring, over three axes, of which planes have the last two."""
        return [axis + 3 - self.configuration.dimensions for axis in self.checkpoints[0].mirror_axes]

    def files(self, *, only: bool) -> list[str]:
        """Returns the names of the networks' files; `only` is for the only network of a model."""
        if self.has_one_file:
            return [NETWORK_FILE if only else f"{self.configuration.name}.onnx"]
        return [f"{self.configuration.name}_fold_{fold}.onnx" for fold in self.folds]

    def recipes(self, *, only: bool) -> list[NetworkRecipe]:
        """Returns how the networks are built."""
        window = self.configuration.window[-self.configuration.dimensions :]
        shape = (self.checkpoints[0].inputs, *window)
        files, folds = self.files(only=only), [self._builder_arguments(checkpoint) for checkpoint in self.checkpoints]
        if len(files) < len(folds):
            return [NetworkRecipe(files[0], "mean", {"builder": BUILDER, "networks": folds}, shape)]
        return [NetworkRecipe(file, BUILDER, fold, shape) for file, fold in zip(files, folds, strict=True)]

    def part_fields(
        self, channels: Sequence[Mapping[str, object]], *, mirroring: bool, only: bool
    ) -> dict[str, object]:
        """Returns the fields of a manifest's part.

        Args:
            channels: The channels of the scan, with names and modalities.
            mirroring: Whether mirrored windows are averaged, where the training allows it.
            only: Whether the model has this network alone.
        """
        configuration = self.configuration
        fields: dict[str, object] = {
            "channels": [
                {**channel, "intensity": dict(intensity)}
                for channel, intensity in zip(channels, configuration.intensities, strict=True)
            ],
            **configuration.part_fields(),
            "mirror_axes": self.mirror_axes if mirroring else [],
        }
        return fields if only else {**fields, "networks": [{"file": file} for file in self.files(only=False)]}

    def reference(self) -> dict[str, object]:
        """Returns how nnU-Net's own predictor runs this stage."""
        return {
            "folder": str(self.folder.path.resolve()),
            "configuration": self.configuration.name,
            "trainer": self.checkpoints[0].trainer,
            "mirror_axes": list(self.checkpoints[0].mirror_axes),
            "networks": [self._builder_arguments(checkpoint) for checkpoint in self.checkpoints],
        }

    def _builder_arguments(self, checkpoint: Checkpoint) -> dict[str, object]:
        architecture = self.configuration.architecture.trained_by(checkpoint.trainer)
        return {
            "network": architecture.network,
            "arguments": dict(architecture.arguments),
            "inputs": checkpoint.inputs,
            "outputs": checkpoint.outputs,
            "checkpoint": str(checkpoint.path.resolve()),
            "trainer": checkpoint.trainer,
        }


class NnunetModel:
    """The importer of nnU-Net's results folders: one, a data set with several, or a zip of them."""

    kind = KIND
    options = frozenset({"checkpoint", "configuration", "folds", "mirroring"})

    def recognises(self, source: Path) -> bool:
        """See `Importer`."""
        return bool(find_folders(source))

    def read(self, source: Path, options: ImportOptions) -> ImportedModel:
        """See `Importer`."""
        chosen = choose(source, options.configuration, options.folds)
        stage = open_stage(chosen.folder, chosen.folds, options)
        if options.configuration not in (None, stage.configuration.name):
            # The folder was renamed.
            own = stage.configuration.name
            raise InputNotFound(f"{stage.folder.path.name} has checkpoints of {own}, not of {options.configuration}")
        previous = _previous_stage(stage, chosen, options)
        _check_channels(stage, previous)
        postprocessing = find_postprocessing(stage.folder, stage.folds, options.isolation)
        return _imported(source, stage, previous, postprocessing, chosen, options)


def open_stage(folder: ResultsFolder, folds: Sequence[str] | None, options: ImportOptions) -> Stage:
    """Opens a results folder: its plans, its data set and its checkpoints.

    Args:
        folder: The results folder.
        folds: The folds that are asked for; None: all that are there.
        options: Which checkpoints, and a folder for temporary files.

    Raises:
        InputNotFound: A file is missing.
        ModelInvalid: A file is damaged, or has what a manifest cannot say.
    """
    plans, dataset = Plans.read(folder.path), Dataset(folder.path)
    names, notes = choose_folds(folder, folds, options.checkpoint)
    paths = [folder.checkpoint(name, options.checkpoint) for name in names]
    checkpoints = describe_checkpoints(paths, options.isolation)
    configurations = {checkpoint.configuration for checkpoint in checkpoints}
    if len(configurations) > 1:
        raise ModelInvalid(f"the folds of {folder.path.name} are of several configurations: {sorted(configurations)}")
    configuration = plans.configuration(checkpoints[0].configuration)
    wanted = (len(configuration.intensities), len(dataset.channels))
    if wanted[0] != wanted[1]:
        raise ModelInvalid(f"plans.json describes {wanted[0]} channels, and dataset.json {wanted[1]}")
    for checkpoint in checkpoints:
        if checkpoint.outputs != len(dataset.outputs):
            raise ModelInvalid(
                f"dataset.json describes {len(dataset.outputs)} {'regions' if dataset.has_regions else 'labels'}, and "
                f"the network of {checkpoint.path.parent.name} has {checkpoint.outputs} outputs"
            )
    return Stage(folder, plans, configuration, dataset, names, checkpoints, notes)


def is_own_trainer(name: str) -> bool:
    """Returns True for a trainer of nnU-Net itself, which makes the network of the plans."""
    return _OWN_TRAINER.fullmatch(name) is not None


def describe_checkpoints(paths: Sequence[Path], isolation: Isolation) -> list[Checkpoint]:
    """Reads what checkpoints say about themselves, in a process of its own.

    Raises:
        ModelInvalid: One is damaged, holds more than weights, or does not come from nnU-Net.
    """
    task = {"files": [str(path.resolve()) for path in paths]}
    found = isolation.run("describe_checkpoints", task).result["checkpoints"]
    return [
        Checkpoint(path, **{**each, "mirror_axes": tuple(each["mirror_axes"])})
        for path, each in zip(paths, found if isinstance(found, list) else [], strict=True)
    ]


def _previous_stage(stage: Stage, chosen: Chosen, options: ImportOptions) -> Stage | None:
    """Opens the stage whose labels a cascade gets."""
    name = stage.configuration.previous_stage
    if name is None:
        return None
    folder = stage.folder.beside(name)
    if folder is None:
        raise InputNotFound(
            f"{stage.folder.path.name} is the second stage of a cascade, and the folder of the first one, {name}, does "
            "not lie beside it; a zip must have both: nnUNetv2_export_model_to_zip -c "
            f"{name} {stage.configuration.name}"
        )
    # It lies beside the source.
    require_confined(folder.path)
    previous = open_stage(folder, chosen.folds, options)
    if previous.configuration.previous_stage is not None:
        raise ModelInvalid(f"a cascade of more than two stages is not supported: {name} has a previous_stage too")
    if previous.configuration.name != name:
        raise ModelInvalid(f"{folder.path.name} has checkpoints of {previous.configuration.name}, not of {name}")
    if previous.dataset.outputs != stage.dataset.outputs or previous.dataset.channels != stage.dataset.channels:
        raise ModelInvalid("the two stages of the cascade have different channels or labels")
    if sorted({output.value for output in previous.dataset.outputs} - {0}) != stage.dataset.values:
        raise ModelInvalid(
            "a cascade whose regions have other values than its labels is not supported: regions_class_order must "
            "have all of them"
        )
    if stage.configuration.labels.interpolation != "linear":
        raise ModelInvalid("plans.json: the labels of a first stage are resampled with order 1 alone")
    return previous


def _check_channels(stage: Stage, previous: Stage | None) -> None:
    for each, further in ((stage, 0 if previous is None else len(stage.dataset.values)), (previous, 0)):
        if each is None:
            continue
        count = len(each.dataset.channels) + further
        for checkpoint in each.checkpoints:
            if checkpoint.inputs != count:
                raise ModelInvalid(
                    f"dataset.json describes {count} input channels, those of a first stage included, and the network "
                    f"of {checkpoint.path.parent.name} has {checkpoint.inputs}"
                )


def _imported(
    source: Path,
    stage: Stage,
    previous: Stage | None,
    postprocessing: Postprocessing,
    chosen: Chosen,
    options: ImportOptions,
) -> ImportedModel:
    modalities = stage.dataset.modalities()
    channels = [
        {"name": name, **({"modality": modality} if modality not in (None, modalities[0]) else {})}
        for name, modality in zip(stage.dataset.channels, modalities, strict=True)
    ]
    only = previous is None and stage.has_one_file
    stages = [each for each in (previous, stage) if each is not None]
    manifest: dict[str, object] = {
        "description": f"nnU-Net, {stage.plans.dataset}, configuration {stage.configuration.name}.",
        "intended_use": "Not stated by the source. Not a medical device.",
        "modality": modalities[0] or "other",
        **stage.part_fields(channels, mirroring=options.mirroring, only=only),
        **stage.dataset.label_fields(),
        "postprocessing": postprocessing.manifest_steps(),
    }
    if previous is not None:
        manifest["first_stage"] = previous.part_fields(channels, mirroring=options.mirroring, only=False)
    return ImportedModel(
        kind=KIND,
        manifest=manifest,
        networks=[recipe for each in stages for recipe in each.recipes(only=only)],
        licence=find_licence(stage.folder.path, source),
        taken=_taken(stage, previous, postprocessing, options),
        assumed=_assumed(stages, postprocessing, chosen, options),
        facts={**stage.dataset.facts(), **_facts(stages, options)},
        stated_dice=find_cross_validation(
            stage.folder, stage.folds, stage.dataset.outputs, postprocessed=bool(postprocessing.steps)
        ),
        reference=Reference(
            "nnunet",
            {
                "stages": [each.reference() for each in stages],
                "mirroring": options.mirroring,
                "postprocessing": [list(labels) for labels in postprocessing.steps],
            },
        ),
    )


def find_licence(folder: Path, source: Path) -> str | None:
    """Returns the licence in a results folder, or in a folder that it lies in, up to the source."""
    within = [each for each in (folder, *folder.parents) if each.is_relative_to(source)]
    return next(filter(None, map(licence_of, within)), None)


def _facts(stages: Sequence[Stage], options: ImportOptions) -> dict[str, str]:
    stage = stages[-1]
    return {
        "Plans": stage.plans.name,
        "Configuration": " after ".join(each.configuration.name for each in reversed(stages)),
        "Trainer": stage.checkpoints[0].trainer,
        "Folds": ", ".join(stage.folds),
        "Mirroring": "; ".join(_mirroring(each, used=options.mirroring) for each in stages),
    }


def _mirroring(stage: Stage, *, used: bool) -> str:
    axes = stage.mirror_axes
    if not axes:
        return "none, as the training allows no axis"
    along = f"along the axes {', '.join(map(str, axes))} of the windows"
    return f"{along}, used: each window runs {2 ** len(axes)} times" if used else f"{along}, not used"


def _taken(stage: Stage, previous: Stage | None, postprocessing: Postprocessing, options: ImportOptions) -> list[Taken]:
    place = f"plans.json, configurations.{stage.configuration.name}"
    older = "architecture" not in stage.plans.configuration_fields(stage.configuration.name)
    taken = [
        Taken("networks", f"checkpoint_{options.checkpoint}.pth of fold {', '.join(stage.folds)}"),
        Taken("their structure", f"{place}: {'UNet_class_name and further keys' if older else 'architecture'}"),
        Taken("orientation", f"plans.json: image_reader_writer ({stage.plans.reader}), transpose_forward"),
        Taken("spacing_mm, window", f"{place}: spacing, patch_size"),
        Taken("intensities", f"{place}: normalization_schemes, use_mask_for_norm; foreground_intensity_properties"),
        Taken("interpolation", f"{place}: resampling_fn_data, resampling_fn_probabilities and their kwargs"),
        Taken("mirror_axes", "the checkpoint: inference_allowed_mirroring_axes"),
        Taken("crop, overlap, blending", "nnU-Net's predictor, the same for all models"),
        Taken("labels, outputs", f"dataset.json: labels{', regions_class_order' if stage.dataset.has_regions else ''}"),
        Taken("names of channels", "dataset.json: channel_names"),
    ]
    if previous is not None:
        taken.append(Taken("first_stage", f"{place}: previous_stage; {previous.folder.path.name}"))
    if postprocessing.steps:
        taken.append(Taken("postprocessing", postprocessing.place))
    return taken


def _assumed(
    stages: Sequence[Stage], postprocessing: Postprocessing, chosen: Chosen, options: ImportOptions
) -> list[str]:
    stage = stages[-1]
    notes = [*chosen.notes, *(note for each in stages for note in each.notes), *postprocessing.notes]
    if options.modality is None:
        known = stage.dataset.modalities()[0]
        name = stage.dataset.channels[0]
        notes.append(
            f"The modality is {known}, as the channel {name} is called so. --modality states another one."
            if known
            else f"The modality is `other`: the name of the channel {name} does not tell it. --modality states it."
        )
    if stage.dataset.has_regions:
        notes.append("A label's name is that of its region, of which the labels of later regions are left out.")
    mirrored = max(len(each.checkpoints[0].mirror_axes) for each in stages)
    if options.mirroring and mirrored:
        runs = f"each window runs {2**mirrored} times"
        notes.append(f"Mirrored windows are averaged, as nnU-Net does: {runs}. With --no-mirroring it runs once.")
    if not options.mirroring and any(each.checkpoints[0].mirror_axes for each in stages):
        notes.append("Mirrored windows are not averaged, although the training allows it (--no-mirroring).")
    for trainer in sorted({each.checkpoints[0].trainer for each in stages}):
        if not is_own_trainer(trainer):
            notes.append(
                f"The trainer {trainer} is not nnU-Net's own. The network is that of the plans, which its weights fit: "
                "another activation function or preparation of the trainer would not be noticed."
            )
    return notes
