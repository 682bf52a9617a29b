"""The names, operators and functions of Python that an expression in a bundle's config may use."""

import ast
import math
import operator
import posixpath
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

from inference_service.importers.monai.values import (
    MAX_ITEMS,
    Array,
    FromCheckpoint,
    Function,
    Refused,
    Symbol,
    Value,
    calculate,
    items,
    scalar,
)

_MAX_EXPONENT = 64
_MAX_DIGITS = 20

_CONSTANTS: dict[str, Value] = {
    **dict.fromkeys(("math.pi", "np.pi", "numpy.pi"), math.pi),
    **dict.fromkeys(("math.inf", "np.inf", "numpy.inf"), math.inf),
    "torch.backends.mps.is_available": False,
}
_COMMON_KEYS = re.compile(r"(monai\.utils\.(enums\.)?)?CommonKeys\.(IMAGE|LABEL|PRED|LOSS|METADATA)")
_DTYPE = re.compile(r"(torch|np|numpy)\.(b?float(16|32|64)|half|float|double|u?int(8|16|32|64)|long|bool_?)")
CLASS = re.compile(r"monai(\.\w+)+")
"""A name of MONAI's."""
_TYPES = {"int", "float", "str", "bool"}


def named(name: str) -> Value:
    """Returns the value of a name; refuses one that is not known."""
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if _COMMON_KEYS.fullmatch(name):
        return name.rpartition(".")[2].lower()
    if _DTYPE.fullmatch(name) or CLASS.fullmatch(name) or name in _TYPES:
        return Symbol(name)
    raise Refused(f"the name {name} is not interpreted here")


def _power(base: Value, exponent: Value) -> Value:
    if not isinstance(exponent, int | float) or abs(exponent) > _MAX_EXPONENT:
        raise Refused(f"an exponent exceeds {_MAX_EXPONENT}")
    return _arithmetic(operator.pow)(base, exponent)


def _arithmetic(operation: Callable[..., Value]) -> Callable[[Value, Value], Value]:
    return partial(calculate, operation)


def _multiply(left: Value, right: Value) -> Value:
    for sequence, count in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(count, int) and len(sequence) * count > MAX_ITEMS:
            raise Refused(f"a value in an expression has more than {MAX_ITEMS} items")
    return _arithmetic(operator.mul)(left, right)


def _modulo(left: Value, right: Value) -> Value:
    if isinstance(left, str):
        raise Refused("text formatted by % is not interpreted here")
    return _arithmetic(operator.mod)(left, right)


def _without_arrays(operation: Callable[..., object]) -> Callable[..., object]:
    def apply(left: Value, right: Value) -> object:
        if isinstance(left, Array) or isinstance(right, Array):
            raise Refused("an array is not compared here")
        return operation(left, right)

    return apply


BINARY: dict[type[ast.operator], Callable[[Value, Value], Value]] = {
    ast.Add: _arithmetic(operator.add),
    ast.Sub: _arithmetic(operator.sub),
    ast.Mult: _multiply,
    ast.Div: _arithmetic(operator.truediv),
    ast.FloorDiv: _arithmetic(operator.floordiv),
    ast.Mod: _modulo,
    ast.Pow: _power,
}
UNARY: dict[type[ast.unaryop], Callable[[Value], Value]] = {
    ast.Not: operator.not_,
    ast.USub: lambda value: operator.neg(cast("float", value)),
    ast.UAdd: lambda value: operator.pos(cast("float", value)),
    ast.Invert: lambda value: operator.invert(cast("int", value)),
}
COMPARISONS: dict[type[ast.cmpop], Callable[..., object]] = {
    ast.Eq: _without_arrays(operator.eq),
    ast.NotEq: _without_arrays(operator.ne),
    ast.Lt: _without_arrays(operator.lt),
    ast.LtE: _without_arrays(operator.le),
    ast.Gt: _without_arrays(operator.gt),
    ast.GtE: _without_arrays(operator.ge),
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, within: item in items(within),
    ast.NotIn: lambda item, within: item not in items(within),
}


def _round(value: float, digits: int | None = None) -> Value:
    if digits is not None and abs(digits) > _MAX_DIGITS:
        raise Refused(f"a number is rounded to more than {_MAX_DIGITS} digits")
    return round(value, digits)


def _range(*limits: int) -> Value:
    numbers = range(*limits)
    if len(numbers) > MAX_ITEMS:
        raise Refused(f"a range has more than {MAX_ITEMS} items")
    return list(numbers)


def _on_items(function: Callable[..., Value]) -> Callable[..., Value]:
    """A function of one list, or of several values."""

    def call(*values: Value) -> Value:
        return function(items(values[0]) if len(values) == 1 else values)

    return call


def _list(values: Value = ()) -> Value:
    return list(items(values))


FUNCTIONS: dict[str, Callable[..., Value]] = {
    "abs": lambda value: abs(value),
    "all": lambda values: all(items(values)),
    "any": lambda values: any(items(values)),
    "bool": lambda value=False: bool(value),
    "dict": lambda **items: dict(items),
    "enumerate": lambda values: [[number, item] for number, item in enumerate(items(values))],
    "float": lambda value=0.0: float(cast("str", scalar(value))),
    "int": lambda value=0: int(cast("str", scalar(value))),
    "len": lambda values: len(values if isinstance(values, Mapping) else items(values)),
    "list": _list,
    "max": _on_items(max),
    "min": _on_items(min),
    "range": _range,
    "round": _round,
    "sorted": lambda values: sorted(items(values)),  # type: ignore[type-var]
    "str": lambda value="": str(scalar(value)),
    "sum": lambda values: sum(items(values)),  # type: ignore[arg-type]
    "tuple": lambda values=(): tuple(items(values)),
    "zip": lambda *lists: [list(each) for each in zip(*map(items, lists), strict=False)],
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.sqrt": math.sqrt,
    "os.path.basename": posixpath.basename,
    "os.path.dirname": posixpath.dirname,
    "os.path.join": posixpath.join,
    "torch.cuda.device_count": lambda: 0,
    "torch.cuda.is_available": lambda: False,
    "torch.backends.mps.is_available": lambda: False,
    "torch.device": lambda *device, **options: Symbol("torch.device"),
    "torch.load": lambda path, *options, **others: FromCheckpoint(str(scalar(path))),
    **dict.fromkeys(("torch.from_numpy", "copy.copy", "copy.deepcopy"), lambda value: value),
    **dict.fromkeys(("torch.tensor", "np.array", "numpy.array"), lambda values, **options: Array.of(values)),
}

_TEXT_METHODS = {"endswith", "join", "lower", "replace", "split", "startswith", "strip", "upper"}
_MAPPING_METHODS = {"get", "items", "keys", "values"}
_LIST_METHODS = {"count", "index"}
# They return the network itself, which is on the CPU here, and only applied.
_NETWORK_METHODS = {"to", "eval", "cpu", "cuda"}


def call_method(value: Value, name: str, arguments: list[Value], keywords: Mapping[str, Value]) -> Value:
    """Calls a method; refuses one that is not known."""
    if not isinstance(value, str | list | tuple | Mapping | int | float | Symbol | Function | None):
        if name in _NETWORK_METHODS:
            return value
    elif isinstance(value, str) and name in _TEXT_METHODS and not keywords:
        if name == "replace" and len(value) * (1 + len(str(arguments[-1]))) > MAX_ITEMS:
            raise Refused(f"a value in an expression has more than {MAX_ITEMS} items")
        return cast("Value", getattr(value, name)(*arguments))
    elif isinstance(value, Mapping) and name in _MAPPING_METHODS and not keywords:
        found = getattr(value, name)(*arguments)
        return found if name == "get" else [list(item) if isinstance(item, tuple) else item for item in found]
    elif isinstance(value, Array) and name == "tolist":
        return value.listed()
    elif isinstance(value, list | tuple) and name in _LIST_METHODS and not keywords:
        return cast("Value", getattr(value, name)(*arguments))
    raise Refused(f"the method {name} is not interpreted here")
