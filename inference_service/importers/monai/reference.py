"""A bundle's config as plain data for MONAI's own parser: resolved here, so that nothing of it is left to evaluate."""

from collections.abc import Iterable, Mapping, Sequence

from inference_service.importers.monai.component import Component
from inference_service.importers.monai.network import Json
from inference_service.importers.monai.spatial import selected_above
from inference_service.importers.monai.values import Function, Symbol, Value

# MONAI's parser evaluates or resolves text that begins so.
_SPECIAL = ("$", "@", "%")
_SAVING = {"SaveImaged"}
# The reader of a bundle may need a package; MONAI chooses one by the file.
_LEFT_OUT = {("LoadImaged", "reader")}
# Transforms that this version of MONAI no longer has, and those that took their place.
_RENAMED = {"AddChanneld": ("EnsureChannelFirstd", {"channel_dim": "no_channel"})}
_PREPROCESSING = "preprocessing"


def reference_config(
    preprocessing: Sequence[Component], inferer: Component, postprocessing: Sequence[Component], inverted: str
) -> dict[str, Json]:
    """Returns a config with the transforms and the inferer of a bundle.

    Args:
        preprocessing: Transforms, all of them mapped.
        inferer: The inferer.
        postprocessing: Transforms, all of them mapped; those that write files are left out.
        inverted: Key of the preprocessing in the bundle's config, which Invertd refers to.

    Raises:
        ModelInvalid: An argument is no plain value.
    """
    return {
        _PREPROCESSING: _composed(preprocessing, inverted),
        "inferer": _component(inferer, inverted),
        "postprocessing": _composed([each for each in postprocessing if each.name not in _SAVING], inverted),
    }


def _composed(transforms: Iterable[Component], inverted: str) -> Json:
    return {"_target_": "Compose", "transforms": [_component(each, inverted) for each in transforms]}


def _component(component: Component, inverted: str) -> Json:
    arguments = {
        name: component.take(name)
        for name in component.arguments
        if not name.startswith("_") and (component.name, name) not in _LEFT_OUT
    }
    plain = {name: _plain(component, name, value, inverted) for name, value in arguments.items()}
    name, others = _RENAMED.get(component.name, (component.name, {}))
    # Keys of labels, which a scan for inference does not have.
    missing = {"allow_missing_keys": True} if len(component.texts("keys")) > 1 else {}
    return {"_target_": name, **plain, **others, **missing}


def _plain(owner: Component, argument: str, value: Value, inverted: str) -> Json:
    if isinstance(value, Component):
        if value.key != inverted:
            owner.refuse("a component as an argument is not passed on", argument)
        return f"@{_PREPROCESSING}"
    if isinstance(value, Symbol):
        # The network runs on the CPU.
        return "cpu" if value.name == "torch.device" else f"${value.name}"
    if isinstance(value, Function):
        return f"$lambda x: x > {selected_above(owner)!r}"
    if isinstance(value, list | tuple):
        return [_plain(owner, argument, each, inverted) for each in value]
    if isinstance(value, Mapping):
        # MONAI's parser makes a class of such an object, and an expression may have made the object.
        if any(str(key).startswith("_") for key in value):
            owner.refuse("an object with keys that begin with _ is not passed on", argument)
        return {str(key): _plain(owner, argument, each, inverted) for key, each in value.items()}
    if isinstance(value, str) and value.startswith(_SPECIAL):
        owner.refuse(f"text that begins with {value[0]} is not passed on", argument)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    owner.refuse("the argument is no plain value", argument)
