"""Resolves the items of a bundle's config one by one: references, expressions, macros and components."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from inference_service.core.errors import ModelInvalid
from inference_service.importers.monai.component import Component
from inference_service.importers.monai.config_file import find_key, find_line, look_up, parse_config, read_config
from inference_service.importers.monai.expressions import REFERENCE, evaluate
from inference_service.importers.monai.values import Refused, Symbol, Value

_TARGET = "_target_"
_SEPARATOR = "#"
_RELATIVE = re.compile(r"(?:#|::)+")
_MAX_DEPTH = 64
# Macros may repeat what is written, and more than double it at each level.
_MAX_VALUES = 200_000


class BundleConfig:
    """A config whose items are resolved when they are asked for.

    Args:
        content: The config file.
        name: Its name.
        folder: The bundle's folder, where the files of macros lie; None: there is none.
    """

    def __init__(self, content: bytes, name: str, folder: Path | None = None) -> None:
        self.name = name
        self.items = parse_config(content, name)
        self._content = content
        self._folder = folder
        self._resolved: dict[str, Value] = {}
        self._resolving: list[str] = []
        self._values = 0

    def __contains__(self, key: str) -> bool:
        return self._written(key) is not None

    def error(self, key: str, reason: str) -> ModelInvalid:
        """Makes the error about a key of the config; it names the line where the file's text tells it."""
        line = find_line(self._content, key.split(_SEPARATOR))
        return ModelInvalid(f"{self.name}{'' if line is None else f' line {line}'}, {key}: {reason}")

    def resolve(self, key: str) -> Value:
        """Resolves an item.

        Args:
            key: Keys and indices, separated by #.

        Returns:
            A plain value, a `Symbol`, a `Function` or a `Component`; None if there is no such item.

        Raises:
            ModelInvalid: It refers to itself or to a missing item, or uses what is not interpreted here.
        """
        if key in self._resolved:
            return self._resolved[key]
        if key in self._resolving:
            raise self.error(key, "it refers to itself")
        if len(self._resolving) >= _MAX_DEPTH:
            raise self.error(key, f"references lead more than {_MAX_DEPTH} deep")
        self._resolving.append(key)
        try:
            value = self._value(key, self._written(key))
        finally:
            self._resolving.pop()
        self._resolved[key] = value
        return value

    def find_file(self, path: str) -> PurePosixPath | None:
        """Finds the file of the bundle that a path of its config means.

        Args:
            path: A path in the bundle, or an absolute one on the machine where it was made, whose end is looked for.

        Returns:
            The path in the bundle; None if it has no such file, or the path leads out of it.
        """
        written = PurePosixPath(path)
        if self._folder is None or ".." in written.parts:
            return None
        parts = written.parts[1:] if written.is_absolute() else written.parts
        for start in range(len(parts) if written.is_absolute() else 1):
            found = PurePosixPath(*parts[start:])
            if (self._folder / found).is_file():
                return found
        return None

    def component(self, key: str) -> Component:
        """Resolves an item that is a component."""
        value = self.resolve(key)
        if not isinstance(value, Component):
            raise self.error(key, f"expected an object with {_TARGET}, got {_described(value)}")
        return value

    def _written(self, key: str) -> Value:
        """The item as it is written, in a component as well; None if it is missing."""
        value: Value = self.items
        for part in key.split(_SEPARATOR):
            if isinstance(value, Mapping) and (name := find_key(value, part)) is not None:
                value = value[name]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return None
        return value

    def _value(self, key: str, written: Value) -> Value:
        self._values += 1
        if self._values > _MAX_VALUES:
            raise ModelInvalid(f"{self.name} unfolds to more than {_MAX_VALUES} values, which is the most that is read")
        if isinstance(written, str):
            return self._text(key, written)
        if isinstance(written, list):
            resolved = [self._value(f"{key}{_SEPARATOR}{index}", item) for index, item in enumerate(written)]
            return [item for item in resolved if not (isinstance(item, Component) and is_disabled(item))]
        if isinstance(written, dict):
            if _TARGET in written:
                return self._component(key, written)
            return {name: self._value(f"{key}{_SEPARATOR}{name}", item) for name, item in written.items()}
        return written

    def _text(self, key: str, written: str) -> Value:
        if written.startswith("$"):
            try:
                return evaluate(
                    written[1:],
                    lambda reference: self._referred(key, reference),
                    lambda target, arguments: Component(target, key, arguments, lambda _, value: value, self.error),
                )
            except Refused as error:
                raise self.error(key, str(error)) from error
        if REFERENCE.fullmatch(written) and len(written) > 1:
            return self._referred(key, written)
        if written.startswith("%"):
            return self._macro(key, written[1:])
        return written

    def _component(self, key: str, written: Mapping[str, Value]) -> Value:
        target = self._value(f"{key}{_SEPARATOR}{_TARGET}", written[_TARGET])
        if isinstance(target, Symbol):
            target = target.name
        if not isinstance(target, str):
            raise self.error(key, f"{_TARGET} is not the name of a class")
        if not all(isinstance(name, str) for name in written):
            raise self.error(key, "the names of its arguments must be text")
        if written.get("_mode_", "default") != "default":
            raise self.error(key, f"_mode_ {written['_mode_']!r} cannot be mapped to a manifest")
        return Component(target, key, {k: v for k, v in written.items() if k != _TARGET}, self._value, self.error)

    def _referred(self, key: str, reference: str) -> Value:
        target = self._absolute(key, reference[1:])
        if self._written(target) is None and _SEPARATOR in target:
            # The last part may lie in a value that is itself a reference.
            parent, _, last = target.rpartition(_SEPARATOR)
            value = self.resolve(parent)
            if isinstance(value, Component):
                return value.take(last)
            if isinstance(value, list) and last.isdecimal() and int(last) < len(value):
                return value[int(last)]
            if isinstance(value, Mapping) and (name := find_key(value, last)) is not None:
                return value[name]
        if not self._exists(target):
            raise self.error(key, f"it refers to {reference}, which the config does not have")
        return self.resolve(target)

    def _exists(self, key: str) -> bool:
        parent, _, last = key.rpartition(_SEPARATOR)
        container = self._written(parent) if parent else self.items
        if isinstance(container, Mapping):
            return find_key(container, last) is not None
        return self._written(key) is not None

    def _absolute(self, key: str, reference: str) -> str:
        """Turns a reference into a key; each leading # goes up a level from the item that refers."""
        upwards = _RELATIVE.match(reference)
        reference = reference.replace("::", _SEPARATOR)
        if upwards is None:
            return reference
        levels = upwards[0].count(_SEPARATOR) or upwards[0].count("::")
        parts = key.split(_SEPARATOR)
        if levels > len(parts):
            raise self.error(key, f"@{reference} leads above the top level")
        return _SEPARATOR.join([*parts[: len(parts) - levels], reference.lstrip(_SEPARATOR)])

    def _macro(self, key: str, macro: str) -> Value:
        """Resolves `%key`, or `%file#key` with a file of the bundle, to what is written there."""
        macro = macro.replace("::", _SEPARATOR)
        file, _, item = macro.partition(_SEPARATOR)
        if not file.endswith((".json", ".yaml", ".yml")):
            written = self._written(self._absolute(key, macro))
        else:
            path = PurePosixPath(file)
            if self._folder is None or path.is_absolute() or ".." in path.parts:
                raise self.error(key, f"%{file} is not a file of the bundle")
            source = self._folder / path
            if source.is_symlink() or not source.is_file():
                raise self.error(key, f"the bundle has no file {file}")
            written = look_up(read_config(source), *filter(None, item.split(_SEPARATOR)))
        if written is None:
            raise self.error(key, f"%{macro} leads to no item")
        self._resolving.append(key)
        try:
            if len(self._resolving) > _MAX_DEPTH:
                raise self.error(key, f"macros lead more than {_MAX_DEPTH} deep")
            return self._value(key, written)
        finally:
            self._resolving.pop()


def _described(value: Value) -> str:
    if value is None:
        return "nothing"
    return f"{type(value).__name__.lower()} {str(value)[:60]!r}"


def is_disabled(component: Component) -> bool:
    """Returns True for a component that MONAI leaves out."""
    return str(component.take("_disabled_", False)).lower() == "true"
