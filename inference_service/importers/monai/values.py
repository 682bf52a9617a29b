"""The values of a bundle's config, and the limits on them."""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

MAX_ITEMS = 5_000
"""Upper limit of the values in the value of an expression, and of the characters of its text."""
_MAX_NUMBER = 2**63

Value: TypeAlias = object
"""A value of a config: JSON's, a `Symbol`, a `Function`, or a component."""


class Refused(Exception):
    """An expression cannot be evaluated here; the message says why."""


@dataclass(frozen=True)
class Symbol:
    """A value of Python that is known by its name alone, such as torch.float32."""

    name: str


class Array(list[Value]):
    """An array of NumPy or PyTorch: a list whose arithmetic is that of its numbers."""

    @classmethod
    def of(cls, values: Value) -> "Array":
        """Makes an array, of arrays where the values are lists."""
        return cls(cls.of(each) if isinstance(each, list | tuple) else each for each in items(values))

    def listed(self) -> list[Value]:
        """Returns the array as a list, of lists where it has further axes."""
        return [each.listed() if isinstance(each, Array) else each for each in self]


@dataclass(frozen=True)
class FromCheckpoint:
    """A value in a file that torch.load reads, which is read by the process that builds the network.

    Attributes:
        path: The file, as the config names it.
        keys: The keys that lead to the value.
    """

    path: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Function:
    """A lambda, which is kept as it is and never called.

    Attributes:
        source: Its text.
        tree: Its syntax tree.
    """

    source: str
    tree: ast.Lambda


def bounded(value: Value) -> Value:
    """Returns a value; refuses one that exceeds the limits."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        if abs(value) > _MAX_NUMBER:
            raise Refused("a number in an expression exceeds 64 bits")
    elif count_nodes(value, MAX_ITEMS) > MAX_ITEMS:
        raise Refused(f"a value in an expression has more than {MAX_ITEMS} items")
    return value


def count_nodes(value: Value, limit: int) -> int:
    """Counts the values in a value, and the characters of text as well, until they exceed a limit."""
    count = 0
    waiting = [value]
    while waiting and count <= limit:
        each = waiting.pop()
        count += 1
        if isinstance(each, Mapping):
            waiting.extend(each.values())
        elif isinstance(each, list | tuple):
            waiting.extend(each)
        elif isinstance(each, str):
            count += len(each)
    return count


def calculate(operation: Callable[[Any, Any], Value], left: Value, right: Value) -> Value:
    """Calculates with two values, of which an array counts number by number.

    Raises:
        Refused: They are not plain, or are arrays of different shapes.
    """
    if not isinstance(left, Array) and not isinstance(right, Array):
        return operation(_plain(left), _plain(right))
    first, second = (Array.of(each) if isinstance(each, list | tuple) else each for each in (left, right))
    if isinstance(first, Array) and isinstance(second, Array):
        return _by_pairs(operation, first, second)
    return _by_numbers(operation, first, second)


def _by_pairs(operation: Callable[[Any, Any], Value], left: Value, right: Value) -> Value:
    if isinstance(left, Array) and isinstance(right, Array) and len(left) == len(right):
        return Array(_by_pairs(operation, first, second) for first, second in zip(left, right, strict=True))
    if isinstance(left, Array) or isinstance(right, Array):
        raise Refused("arrays of different shapes are not calculated with here")
    return _by_numbers(operation, left, right)


def _by_numbers(operation: Callable[[Any, Any], Value], left: Value, right: Value) -> Value:
    """Calculates with two numbers, or an array and a number."""
    if isinstance(left, Array):
        return Array(_by_numbers(operation, each, right) for each in left)
    if isinstance(right, Array):
        return Array(_by_numbers(operation, left, each) for each in right)
    if any(isinstance(each, bool) or not isinstance(each, int | float) for each in (left, right)):
        raise Refused("an array is calculated with only as numbers here")
    return bounded(operation(left, right))


def _plain(value: Value) -> Value:
    """Returns a plain value; refuses components, symbols and functions."""
    if isinstance(value, str | int | float | list | tuple | Mapping) or value is None:
        return value
    raise Refused("only numbers, text, lists and dictionaries are calculated with here")


def scalar(value: Value) -> str | float | None:
    """Returns a number or text; refuses all that has a longer text."""
    if isinstance(value, str | int | float) or value is None:
        return value
    raise Refused("only numbers and text are turned into one another here")


def items(value: Value) -> Sequence[Value]:
    """Returns the items of a list, of text or of an object; refuses other values."""
    if isinstance(value, Mapping):
        return list(value)
    if not isinstance(value, list | tuple | str):
        raise Refused("an expression goes over items that are no list")
    return value
