"""The schema of a model's `manifest.json`, which describes how to run its networks.

It covers what nnU-Net's plans and MONAI bundles specify for inference; `docs/manifest.md` shows how.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Self

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError, model_validator

from inference_service.contract.labels import Label, PostProcessing
from inference_service.contract.manifest_types import Modality, Sha256
from inference_service.contract.part import NETWORK_FILE, NetworkFile, Part
from inference_service.contract.task_message import NAME_PATTERN, VERSION_PATTERN
from inference_service.core.execution import Precision
from inference_service.core.files import MAX_CHANNELS

MANIFEST_FILE = "manifest.json"
"""The file of a model's manifest, in the folder of its networks."""
# Fields of a part that another part does not inherit.
_OWN = {"networks", "outputs", "first_stage"}
_SHA256 = TypeAdapter[str](Sha256)
_LABELS = TypeAdapter(tuple[Label, ...])


class Manifest(Part):
    """Describes a model, the preparation of its input and the conversion of its output to a mask.

    A model of one part describes it in the fields of the manifest itself. With `parts`, these fields hold for each part
    that does not state its own.
    """

    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=VERSION_PATTERN)
    description: str = Field(min_length=1)
    licence: str = Field(min_length=1, description="SPDX identifier of the licence of the weights.")
    intended_use: str = Field(min_length=1)
    modality: Modality
    sha256: Sha256 | None = Field(None, description="SHA-256 of model.onnx; null where `networks` names the files.")
    precisions: tuple[Precision, ...] = Field(
        ("fp32",),
        description="Precisions in which the networks may run. Add bf16 only after `models verify --precision bf16` "
        "has shown that its masks agree with fp32.",
    )
    time_limit_s: PositiveInt | None = Field(
        None,
        description="Seconds after which a job with this model fails with time_limit, if lower than TIME_LIMIT_S.",
    )
    labels: tuple[Label, ...] = Field(min_length=1, description="The labels of the mask.")
    postprocessing: tuple[PostProcessing, ...] = ()
    parts: tuple[Part, ...] = Field(
        (),
        description="Parts that segment the same scan one after the other; labels of later parts overwrite those of "
        "earlier ones (TotalSegmentator). Fields that a part leaves out are those of the manifest.",
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: object) -> object:
        """Writes out what a manifest may leave out: networks, outputs, and the fields that parts inherit."""
        return _completed(data) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "fp32" not in self.precisions:
            raise ValueError("precisions must contain fp32, which every provider supports")
        values = [label.value for label in self.labels]
        if len(set(values)) != len(values) or len({label.name for label in self.labels}) != len(values):
            raise ValueError("labels must have unique names and unique values")
        self._check_channels()
        self._check_networks()
        for part in self.every_part:
            self._check_part(part, values)
        unknown = {value for step in self.postprocessing for value in step.labels} - set(values)
        replacements = {getattr(step, "becomes", 0) for step in self.postprocessing}
        unknown |= replacements - {"surroundings", 0, *values}
        if unknown:
            raise ValueError(f"postprocessing uses label values that the model does not have: {sorted(unknown)}")
        grids = [step.grid for step in self.postprocessing]
        if "network" in grids and (self.parts or self.first_stage or self.logits_interpolation != "nearest"):
            raise ValueError("a step on the grid of the network needs one part, with logits_interpolation nearest")
        if grids != sorted(grids):
            raise ValueError("steps on the grid of the network come before those on the grid of the scan")
        return self

    def _check_channels(self) -> None:
        modalities: dict[str, Modality | None] = {}
        for part in (self, *self.every_part):
            for channel in part.channels:
                if modalities.setdefault(channel.name, channel.modality) != channel.modality:
                    raise ValueError("channels of one name get the same scan: they must have the same modality")
        if len(self.channel_names) > MAX_CHANNELS:
            raise ValueError(f"a model takes at most {MAX_CHANNELS} channels of different names")

    def _check_networks(self) -> None:
        if self.parts and (own := [name for name in sorted({"sha256", *_OWN}) if getattr(self, name)]):
            raise ValueError(f"a manifest with parts has no {' and no '.join(own)} of its own: the parts have them")
        if self.sha256 is not None and self.networks != (NetworkFile(file=NETWORK_FILE, sha256=self.sha256),):
            raise ValueError("sha256 is that of model.onnx: leave it out where networks names the files")
        # A network is loaded once, for windows or for planes along one axis.
        uses: dict[str, tuple[object, ...]] = {}
        for part in self.every_part:
            for network in part.networks:
                use = (network, [size == 1 for size in part.window])
                if uses.setdefault(network.file, use) != use:
                    raise ValueError(f"parts that share {network.file} must describe it alike")

    def _check_part(self, part: Part, values: list[int]) -> None:
        if not part.networks:
            raise ValueError("a network is required: sha256 of model.onnx, or networks")
        unknown = {*part.values} - {*values}
        if unknown:
            raise ValueError(f"outputs have values that no label has: {sorted(unknown)}")
        names = [channel.name for channel in self.channels]
        others = [channel.name for channel in part.channels if channel.name not in names]
        if others:
            raise ValueError(f"a part has channels that the manifest does not have: {others}")

    @property
    def channel_names(self) -> tuple[str, ...]:
        """The channels that a job has scans for: their different names, in order."""
        return tuple(dict.fromkeys(channel.name for channel in self.channels))

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """The parts, in the order in which they run; the manifest itself where it describes only one."""
        return self.parts or (self,)

    @property
    def every_part(self) -> tuple[Part, ...]:
        """The parts and their first stages."""
        return tuple(each for part in self.all_parts for each in (part.first_stage, part) if each is not None)

    @property
    def network_files(self) -> dict[str, NetworkFile]:
        """The networks of all parts, by file."""
        return {network.file: network for part in self.every_part for network in part.networks}

    @property
    def networks_sha256(self) -> str:
        """Identifies the weights: the SHA-256 of the only file with them, or of the hashes of all files in order."""
        networks = self.network_files.values()
        digests = [digest for network in networks for digest in (network.sha256, *network.external_data.values())]
        return digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest()


def _completed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Writes out the networks, the outputs and the inherited fields of a manifest.

    An invalid sha256 or label is not copied, so that its error names the field that the manifest has.
    """
    completed = dict(manifest)
    labels = completed.get("labels")
    outputs: list[dict[str, Any]] = []
    if _is_valid(_LABELS, labels):
        outputs = [{"channel": channel, "value": label["value"]} for channel, label in enumerate(labels or ())]
    if parts := _objects(completed.get("parts")):
        completed["parts"] = [_inherit(part, completed, outputs) for part in parts]
        return completed
    if not completed.get("networks") and _is_valid(_SHA256, completed.get("sha256")):
        completed["networks"] = [{"file": NETWORK_FILE, "sha256": completed["sha256"]}]
    return _inherit(completed, {}, outputs)


def _inherit(part: Mapping[str, Any], enclosing: Mapping[str, Any], outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Fills in the fields that a part inherits from the manifest, and those that its first stage inherits from it."""
    inherited = {name: value for name, value in enclosing.items() if name in Part.model_fields and name not in _OWN}
    inherited |= part
    inherited["outputs"] = inherited.get("outputs") or outputs
    if isinstance(first_stage := inherited.get("first_stage"), Mapping):
        inherited["first_stage"] = _inherit(first_stage, inherited, outputs)
    return inherited


def _objects(values: object) -> list[Mapping[str, Any]]:
    """Returns the values if they are a list of JSON objects; an empty list for anything else."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, Mapping) for value in values):
        return []
    return list(values)


def _is_valid(kind: TypeAdapter[Any], value: object) -> bool:
    try:
        kind.validate_python(value)
    except ValidationError:
        return False
    return True
