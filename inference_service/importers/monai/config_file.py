"""Reads a config of a bundle, JSON or YAML, as data within limits, and finds the line of a value in it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from inference_service.core.errors import InputNotFound, ModelInvalid
from inference_service.importers.monai.values import Value, count_nodes

MAX_CONFIG_BYTES = 2**20
_MAX_NODES = 2**20
_MAX_DEPTH = 100
YAML_SUFFIXES = (".yaml", ".yml")


# libyaml's is ten times as fast. Not every build of PyYAML has it.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):  # type: ignore[misc]
    """Limits the pairs that merge keys (<<) repeat, which may be far more than the text has."""

    _pairs = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        self._pairs += len(node.value)
        if self._pairs > _MAX_NODES:
            raise yaml.YAMLError(f"it merges more than {_MAX_NODES} pairs")


def read_config(path: Path) -> dict[str, Value]:
    """Reads a config file.

    Raises:
        InputNotFound: There is no such file.
        ModelInvalid: It is neither JSON nor YAML with an object at the top level, or too large.
    """
    if not path.is_file():
        raise InputNotFound(f"the bundle has no {path.name}")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelInvalid(f"{path.name} has more than {MAX_CONFIG_BYTES} bytes, which is the most that is read")
    return parse_config(path.read_bytes(), path.name)


def parse_config(content: bytes, name: str) -> dict[str, Value]:
    """Parses a config.

    Args:
        content: JSON, or YAML if the name ends in .yaml or .yml.
        name: The file's name, for errors.

    Raises:
        ModelInvalid: See `read_config`.
    """
    try:
        text = content.decode("utf-8-sig")
        value = _load_yaml(text, name) if name.endswith(YAML_SUFFIXES) else json.loads(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ModelInvalid(f"{name} is not valid {'YAML' if name.endswith(YAML_SUFFIXES) else 'JSON'}") from error
    if not isinstance(value, dict):
        raise ModelInvalid(f"{name} has no object at its top level")
    # An alias of YAML may stand for a value that is much larger than its text.
    if count_nodes(value, _MAX_NODES) > _MAX_NODES:
        raise ModelInvalid(f"{name} unfolds to more than {_MAX_NODES} values, which is the most that is read")
    if _is_deeper(value, _MAX_DEPTH):
        raise _too_deep(name)
    return value


def _load_yaml(text: str, name: str) -> Value:
    if _is_too_deep(text):
        raise _too_deep(name)
    return yaml.load(text, _Loader)


def _is_too_deep(text: str) -> bool:
    """Tells it before YAML is loaded: libyaml's loader calls itself at each level, without a limit."""
    depth = 0
    for event in yaml.parse(text, Loader=_SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            return True
    return False


def _too_deep(name: str) -> ModelInvalid:
    return ModelInvalid(f"{name} is nested more than {_MAX_DEPTH} deep")


def _is_deeper(value: Value, levels: int) -> bool:
    """Returns True if a value has more levels of lists and objects."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(each, levels - 1) for each in inner)


def find_line(content: bytes, parts: Sequence[str]) -> int | None:
    """Finds the line of a value, counted from 1.

    Args:
        content: A config; JSON is read as the YAML that it is but for tabs.
        parts: The keys and indices that lead to the value.

    Returns:
        The line of the value, or of the last one on the way that is there; None if the text cannot be parsed.
    """
    try:
        text = content.decode("utf-8-sig").replace("\t", " ")
        node = None if _is_too_deep(text) else yaml.compose(text, Loader=_SafeLoader)
    except (ValueError, RecursionError, yaml.YAMLError):
        return None
    line: int | None = None
    for part in parts:
        found = _child(node, part)
        if found is None:
            break
        line, node = found
    return line


def _child(node: yaml.Node | None, part: str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                return key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
        child = node.value[int(part)]
        return child.start_mark.line + 1, child
    return None


def find_key(values: Mapping[Value, Value], name: str) -> Value:
    """Returns the key with this text, which in YAML may be a number; None if there is none."""
    return name if name in values else next((key for key in values if str(key) == name), None)


def look_up(config: Mapping[str, Value], *parts: str) -> Value:
    """Returns the value that keys of nested objects lead to; None if one of them is missing."""
    value: Value = config
    for part in parts:
        key = find_key(value, part) if isinstance(value, Mapping) else None
        if key is None or not isinstance(value, Mapping):
            return None
        value = value[key]
    return value
