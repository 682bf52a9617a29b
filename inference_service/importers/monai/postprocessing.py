"""Maps the postprocessing of a bundle: when and how labels are decided, and how the mask is cleaned."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, prod
from typing import Literal

from inference_service.importers.monai.component import COPY, Component
from inference_service.importers.monai.spatial import Grid
from inference_service.importers.monai.values import Function

PREDICTION_KEY = "pred"
_WITHOUT_EFFECT = {
    "CastToTyped",
    "CopyItemsd",
    "DeleteItemsd",
    "EnsureTyped",
    "FromMetaTensord",
    "Identityd",
    "SelectItemsd",
    "SqueezeDimd",
    "ToDeviced",
    "ToNumpyd",
    "ToTensord",
}
_CODE = {"Lambdad", "Lambda"}
_RENAMING = {"LabelFilterd", "MapLabelValued"}
_MM3_PER_ML = 1000.0
_CONNECTIVITIES = {1: "faces", 2: "edges", 3: "corners"}
_FULL_CONNECTIVITY = 3


@dataclass
class Decision:
    """How outputs become labels, as far as it has been mapped.

    Attributes:
        grid: The grid of the network; None: that of the scan.
        activation: The activation before the decision; None: none.
        decided: How labels are decided; None: not yet.
        threshold: Of a decision by threshold.
        inverted: Interpolation back to the scan's grid; None: not yet.
        inverted_before_decision: Whether that came first.
        inverted_probabilities: Whether probabilities went back, not logits.
        values: The label that each channel becomes, where it becomes another.
        kept: The channels that are kept; None: all.
        renamed: The label of each channel where a later transform sees it, also if labels are given apart.
        steps: Steps of a manifest's postprocessing, with channels for labels, or None for those of all channels.
        on_channels: The first step on channels of a threshold, of which several may overlap; None: there is none.
        notes: What is assumed.
        skipped: Components of Python that were left out because labels are given.
        used: The transforms that the network's output goes through.
    """

    grid: Grid | None = None
    activation: Literal["softmax", "sigmoid"] | None = None
    decided: Literal["argmax", "threshold"] | None = None
    threshold: float = 0.5
    inverted: Literal["nearest", "linear"] | None = None
    inverted_before_decision: bool = False
    inverted_probabilities: bool = False
    values: dict[int, int] = field(default_factory=dict)
    kept: list[int] | None = None
    renamed: dict[int, int] = field(default_factory=dict)
    steps: list[dict[str, object]] = field(default_factory=list)
    on_channels: Component | None = None
    notes: list[str] = field(default_factory=list)
    skipped: list[Component] = field(default_factory=list)
    used: list[Component] = field(default_factory=list)

    def fields(self, outputs: int) -> dict[str, object]:
        """Returns the fields of the manifest, but for labels, outputs and postprocessing."""
        if self.decided is None:
            self._assume_decision(outputs)
        if self.inverted is None and self.grid is not None:
            self.notes.append("The bundle leaves its mask on the network's grid; here it is that of the scan.")
        # A label that is decided on the network's grid goes back to the scan's by the nearest voxel.
        before = self.inverted_before_decision and self.inverted == "linear"
        return {
            "activation": self.final_activation,
            "interpolate": "probabilities" if self.interpolates_probabilities else "logits",
            "logits_interpolation": "linear" if before else "nearest",
        }

    @property
    def resampled(self) -> bool:
        """True if scans are resampled to the network's grid."""
        return self.grid is not None and self.grid.resamples

    @property
    def interpolates_probabilities(self) -> bool:
        """True if probabilities go back to the scan's grid linearly before the decision."""
        return self.inverted_before_decision and self.inverted == "linear" and self.inverted_probabilities

    @property
    def final_activation(self) -> Literal["softmax", "sigmoid"]:
        """The activation of the manifest."""
        return "sigmoid" if self.decided == "threshold" else "softmax"

    @property
    def probability(self) -> float:
        """The threshold as a probability; without an activation, it is that of a logit."""
        if self.activation == "sigmoid":
            return self.threshold
        return 1 / (1 + exp(-max(-30.0, min(30.0, self.threshold))))

    def channels(self, labels: Sequence[int]) -> list[int]:
        """The channels that have become one of these labels."""
        known = dict.fromkeys(labels) | dict.fromkeys(self.renamed)
        return [channel for channel in known if self.renamed.get(channel, channel) in labels]

    def value(self, channel: int) -> int:
        """The label of a channel of a softmax in the mask."""
        value = self.values.get(channel, channel)
        return 0 if self.kept is not None and channel not in self.kept else value

    def _assume_decision(self, outputs: int) -> None:
        by_threshold = self.activation == "sigmoid" or outputs == 1
        self.decided = "threshold" if by_threshold else "argmax"
        self.inverted_before_decision = self.inverted is not None
        how = "every channel above one half" if by_threshold else "the highest channel"
        self.notes.append(f"The bundle has no AsDiscreted; the label is decided by {how}.")
        if self.activation is None and by_threshold:
            self.threshold = 0.0


def map_postprocessing(
    transforms: Sequence[Component],
    grid: Grid | None,
    preprocessing: str,
    images: Collection[str],
    *,
    labels_given: bool,
) -> Decision:
    """Maps the transforms of a bundle's postprocessing.

    Args:
        transforms: The transforms, in order.
        grid: The grid that the preprocessing resamples to.
        preprocessing: Key of the preprocessing, which Invertd must invert.
        images: Keys of the images that it prepares, of which Invertd must name one.
        labels_given: Whether the labels are given apart, so that Python that maps labels is left out.

    Raises:
        ModelInvalid: A transform has no counterpart in a manifest; the message names it.
    """
    decision = Decision(grid)
    for component in transforms:
        if component.name in _CODE or not component.is_monai:
            if not labels_given:
                component.refuse(
                    "the bundle's own Python is not run. If it only maps labels, give these by --labels FILE"
                )
            if decision.decided is None:
                component.refuse(
                    f"the bundle's own Python is not run, and before labels are decided it maps none. {COPY}"
                )
            decision.skipped.append(component)
            continue
        if component.name in _WITHOUT_EFFECT or PREDICTION_KEY not in component.texts("keys"):
            continue
        component.choose(PREDICTION_KEY)
        if labels_given and component.name in _RENAMING:
            _leave_out(decision, component)
            continue
        handler = _HANDLERS.get(component.name)
        if handler is None:
            component.refuse(f"this transform cannot be mapped to a manifest. {COPY}")
        if component.name == "Invertd":
            _check_inverted(component, preprocessing, images)
        handler(decision, component)
        decision.used.append(component)
    return decision


def _activate(decision: Decision, component: Component) -> None:
    if decision.decided is not None:
        component.refuse("it lies after the decision on labels")
    softmax, sigmoid = component.flag("softmax"), component.flag("sigmoid")
    if component.take("other") is not None:
        component.refuse("this activation cannot be mapped to a manifest", "other")
    if softmax and component.take("dim", 0) != 0:
        component.refuse("a softmax along another axis than the channels' cannot be mapped to a manifest", "dim")
    if softmax and sigmoid:
        component.refuse("softmax and sigmoid exclude one another")
    decision.activation = "softmax" if softmax else "sigmoid" if sigmoid else decision.activation


def _decide(decision: Decision, component: Component) -> None:
    argmax, threshold = component.flag("argmax"), component.optional_number("threshold")
    component.take("to_onehot")
    if decision.decided is None and (argmax or threshold is not None):
        decision.decided = "argmax" if argmax else "threshold"
        decision.inverted_before_decision = decision.inverted is not None
        if threshold is not None and (argmax or decision.activation == "softmax"):
            component.refuse("a threshold on a softmax cannot be mapped to a manifest", "threshold")
        decision.threshold = decision.threshold if threshold is None else threshold
        if decision.activation == "sigmoid" and not 0 < decision.threshold < 1:
            component.refuse(f"expected a threshold between 0 and 1, got {decision.threshold:g}", "threshold")
        if argmax and decision.activation == "sigmoid" and decision.resampled and decision.interpolates_probabilities:
            component.refuse(
                "the highest of several sigmoids that Invertd has interpolated cannot be mapped to a manifest. A copy "
                "of the config with a softmax, or with Invertd before Activationsd, can be named by --config",
                "argmax",
            )
    if component.take("dim", 0) != 0:
        component.refuse("labels along another axis than the channels' cannot be mapped to a manifest", "dim")
    component.finish(("allow_missing_keys", "rounding", "keepdim", "dtype"))


def _check_inverted(component: Component, preprocessing: str, images: Collection[str]) -> None:
    transform = component.take("transform")
    key = getattr(transform, "key", None)
    if key != preprocessing:
        component.refuse(f"it inverts other transforms than {preprocessing}", "transform")
    if not set(component.texts("orig_keys", component.texts("keys"))) & set(images):
        component.refuse("it does not name the image whose transforms it inverts, and so inverts none", "orig_keys")


def _invert(decision: Decision, component: Component) -> None:
    if decision.inverted is not None:
        component.refuse("the prediction is inverted already")
    post = component.take("post_func")
    if post is not None and not (isinstance(post, Function) and post.source in ("lambda x: x", "lambda _: _")):
        component.refuse("the bundle's own Python is not run", "post_func")
    nearest = component.flag("nearest_interp", True)
    interpolation = "linear" if decision.grid is None else decision.grid.interpolation
    decision.inverted = "nearest" if nearest or interpolation == "nearest" else "linear"
    if nearest and decision.grid is not None and decision.grid.size is not None:
        component.refuse(
            "for Resized, it takes a voxel up to half a voxel away from the nearest one, which cannot be mapped to a "
            "manifest",
            "nearest_interp",
        )
    if decision.inverted == "linear" and interpolation != "linear":
        decision.notes.append(f"Probabilities go back to the scan's grid linearly, not by a {interpolation} spline.")
    decision.inverted_probabilities = decision.activation is not None
    if decision.decided is not None and not nearest and decision.grid is not None:
        decision.notes.append(
            "The bundle interpolates labels linearly as numbers (Invertd without nearest_interp), which gives values "
            "between labels; here a voxel has the label of the nearest one."
        )


def _step(decision: Decision, component: Component, name: str, **fields: object) -> None:
    """Adds a step of the manifest's postprocessing, on the grid that the mask lies on here."""
    if decision.decided is None:
        component.refuse("it lies before labels are decided (AsDiscreted)")
    labels = _labels(component, "applied_labels")
    # Python of the bundle's own is left out only where it maps labels.
    merged = any(each.name not in _RENAMING for each in decision.skipped)
    if merged and labels is not None:
        component.refuse("it names labels that are made by the bundle's own Python, which is not run", "applied_labels")
    if decision.decided == "threshold" and not merged:
        decision.on_channels = decision.on_channels or component
    grid = {"grid": "network"} if decision.resampled and decision.inverted is None else {}
    channels = None if labels is None else decision.channels(labels)
    decision.steps.append({"step": name, "labels": channels, **fields, **grid})


def _largest(decision: Decision, component: Component) -> None:
    if component.whole("num_components", 1) != 1:
        component.refuse("only the largest component can be kept", "num_components")
    together = {} if component.flag("independent", True) else {"together": True}
    component.take("is_onehot")
    connectivity = _connectivity(component, default=_FULL_CONNECTIVITY)
    _step(decision, component, "largest_component", **connectivity, **together)
    component.finish(("allow_missing_keys",))


def _remove_small(decision: Decision, component: Component) -> None:
    size = component.number("min_size", 64)
    if component.flag("by_measure"):
        volume_ml = size / _MM3_PER_ML
    else:
        spacing = () if decision.grid is None else decision.grid.spacing_mm
        sides = [side for side in spacing if side is not None]
        if len(sides) < len(spacing) or not sides or decision.inverted is not None:
            component.refuse("a size in voxels of the scan cannot be mapped to a manifest, which has millilitres")
        # Half a voxel less, so that rounding decides on no component.
        volume_ml = (size - 0.5) * prod(sides) / _MM3_PER_ML
    component.take("pixdim")
    component.take("independent_channels")
    connectivity = _connectivity(component, default=1)
    _step(decision, component, "remove_small", min_volume_ml=volume_ml, **connectivity)
    component.finish(("allow_missing_keys",))


def _fill(decision: Decision, component: Component) -> None:
    connectivity = _connectivity(component, default=_FULL_CONNECTIVITY)
    _step(decision, component, "fill_holes", **connectivity)
    component.finish(("allow_missing_keys",))


def _connectivity(component: Component, default: int) -> dict[str, str]:
    """The field `connectivity` of a step; none for the full one, which is the manifest's default."""
    value = component.optional_number("connectivity", default)
    value = _FULL_CONNECTIVITY if value is None else value
    if value not in _CONNECTIVITIES:
        component.refuse(f"connectivity is {value:g}; 1, 2 and 3 are supported")
    return {} if value == _FULL_CONNECTIVITY else {"connectivity": _CONNECTIVITIES[int(value)]}


def _map_values(decision: Decision, component: Component) -> None:
    if decision.values or decision.steps or decision.kept is not None:
        component.refuse("it lies after other changes of the labels")
    decision.values = decision.renamed = _mapped_values(component)
    component.finish(("allow_missing_keys", "dtype"))


def _mapped_values(component: Component) -> dict[int, int]:
    """The label that MapLabelValued makes of each label."""
    labels, targets = _labels(component, "orig_labels"), _labels(component, "target_labels")
    if labels is None or targets is None or len(labels) != len(targets):
        component.refuse("orig_labels and target_labels have different lengths")
    return dict(zip(labels, targets, strict=True))


def _leave_out(decision: Decision, component: Component) -> None:
    """Leaves out a transform that changes labels; what follows a MapLabelValued names the new ones."""
    decision.skipped.append(component)
    if component.name == "MapLabelValued":
        earlier = decision.renamed
        mapped = _mapped_values(component)
        labels = {channel: earlier.get(channel, channel) for channel in (*mapped, *earlier)}
        decision.renamed = {channel: mapped.get(label, label) for channel, label in labels.items()}


def _filter(decision: Decision, component: Component) -> None:
    if decision.values or decision.steps:
        component.refuse("it lies after other changes of the labels")
    decision.kept = _labels(component, "applied_labels")
    component.finish(("allow_missing_keys",))


def _save(decision: Decision, component: Component) -> None:
    if component.flag("resample") and decision.inverted is None:
        decision.inverted = "nearest"


def _labels(component: Component, argument: str) -> list[int] | None:
    """An argument with labels; None if it is missing."""
    value = component.take(argument)
    if value is None:
        return None
    labels = []
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, bool) or not isinstance(each, int | float) or each % 1 != 0:
            component.refuse(f"expected whole numbers, got {value!r}", argument)
        labels.append(int(each))
    return labels


_HANDLERS: Mapping[str, Callable[[Decision, Component], None]] = {
    "Activationsd": _activate,
    "AsDiscreted": _decide,
    "FillHolesd": _fill,
    "Invertd": _invert,
    "KeepLargestConnectedComponentd": _largest,
    "LabelFilterd": _filter,
    "MapLabelValued": _map_values,
    "RemoveSmallObjectsd": _remove_small,
    "SaveImaged": _save,
}
