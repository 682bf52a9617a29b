"""The JSON files of a results folder: read within limits, and each value checked when it is taken."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeAlias

from inference_service.core.errors import InputNotFound, ModelInvalid

Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None

# A dataset.json may list every scan of the training.
MAX_BYTES = 2**24
"""Upper limit of a JSON file."""
_MAX_TEXT = 4096
_MAX_ITEMS = 4096
_MAX_SHOWN = 80
_DIGITS = re.compile(r"\s*[0-9]{1,9}\s*")


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> "Fields":
    """Reads a JSON file.

    Raises:
        InputNotFound: There is no such file.
        ModelInvalid: It is too large, or no JSON object.
    """
    if not path.is_file():
        raise InputNotFound(f"{path.parent.name} has no {path.name}")
    if path.stat().st_size > max_bytes:
        raise ModelInvalid(f"{path.name} has more than {max_bytes} bytes, which is the most that is read")
    return parse_json(path.read_bytes(), path.name)


def parse_json(content: bytes, file: str) -> "Fields":
    """Reads the content of a JSON file.

    Raises:
        ModelInvalid: It is no JSON object.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelInvalid(f"{file} is not valid JSON") from error
    if not isinstance(values, dict):
        raise ModelInvalid(f"{file} has no object at its top level")
    return Fields(values, file)


class Fields:
    """An object of a JSON file. An error names the file and the keys that lead to the value.

    Args:
        values: The object.
        file: Name of the file.
        place: Keys that lead to the object, with a dot after each.
    """

    def __init__(self, values: Mapping[str, Json], file: str, place: str = "") -> None:
        self.values = values
        self.file = file
        self.place = place

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def refuse(self, key: str, problem: str) -> NoReturn:
        """Raises ModelInvalid for a value."""
        raise ModelInvalid(f"{self.file}, {self.place}{key}: {problem}")

    def child(self, key: str) -> "Fields":
        """Returns an object."""
        value = self.values.get(key)
        if not isinstance(value, dict):
            self.refuse(key, "expected an object")
        return Fields(value, self.file, f"{self.place}{key}.")

    def text(self, key: str, default: str | None = None) -> str:
        """Returns a text, or the default where there is none."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT:
            self.refuse(key, "expected a text")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Returns true or false, or the default where there is neither."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, "expected true or false")
        return value

    def items(self, key: str) -> list[Json]:
        """Returns a list."""
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) > _MAX_ITEMS:
            self.refuse(key, f"expected a list of at most {_MAX_ITEMS} values")
        return value

    def number(self, key: str) -> float:
        """Returns a finite number."""
        return self._number(key, self.values.get(key))

    def numbers(self, key: str) -> list[float]:
        """Returns a list of finite numbers."""
        return [self._number(key, value) for value in self.items(key)]

    def whole(self, key: str, low: int, high: int) -> int:
        """Returns a whole number within bounds."""
        return self._whole(key, self.values.get(key), low, high)

    def wholes(self, key: str, low: int, high: int) -> list[int]:
        """Returns a list of whole numbers within bounds."""
        return [self._whole(key, value, low, high) for value in self.items(key)]

    def numbers_or_text(self, key: str, low: int, high: int) -> list[int]:
        """Returns a whole number, or a list of such, as a list; numbers may be written as text, as nnU-Net allows."""
        value = self.values.get(key)
        items = self.items(key) if isinstance(value, list) else [value]
        read = (int(each) if isinstance(each, str) and _DIGITS.fullmatch(each) else each for each in items)
        return [self._whole(key, each, low, high) for each in read]

    def sizes(self, key: str, low: int, high: int, *, depth: int = 2) -> Json:
        """Returns a whole number, or nested lists of such, all within bounds."""
        return self._sizes(key, self.values.get(key), (low, high), depth)

    def _number(self, key: str, value: Json) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
            self.refuse(key, f"expected a finite number, got {shown(value)}")
        return float(value)

    def _whole(self, key: str, value: Json, low: int, high: int) -> int:
        # Some plans write whole numbers as 2.0.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or value % 1:
            self.refuse(key, f"expected whole numbers from {low} to {high}, got {shown(value)}")
        return int(value)

    def _sizes(self, key: str, value: Json, bounds: tuple[int, int], depth: int) -> Json:
        if isinstance(value, list) and depth and len(value) <= _MAX_ITEMS:
            return [self._sizes(key, each, bounds, depth - 1) for each in value]
        return self._whole(key, value, *bounds)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def shown(value: Json) -> str:
    """Returns a value as JSON for a message, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def one_line(names: Sequence[str], separator: str = ", ") -> str:
    """Joins names for a message, the first few of them."""
    joined = separator.join(names[:8])
    return joined if len(names) <= 8 else f"{joined} and {len(names) - 8} more"
