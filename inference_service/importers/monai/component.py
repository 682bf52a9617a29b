"""A component of a bundle's config: a class of MONAI and its arguments, each used or refused by name."""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import isnan
from sys import float_info
from typing import NoReturn

from inference_service.core.errors import ModelInvalid
from inference_service.importers.monai.values import Symbol, Value

_GREATEST = float_info.max
COPY = "If MONAI has a transform that does the same, name a copy of the config with it by --config"
"""The way out where a transform cannot be mapped."""
Fail = Callable[[str, str], ModelInvalid]
"""Makes the error for the key of a value and the reason; the message names the config, its key and the line."""


class Component:
    """A component, whose arguments are resolved one by one.

    Args:
        target: The class, as the config names it.
        key: The component's key in the config, such as preprocessing#transforms#2.
        arguments: The arguments as they are written.
        resolve: Resolves an argument by its key and its written value.
        fail: Makes errors.
    """

    def __init__(
        self,
        target: str,
        key: str,
        arguments: Mapping[str, Value],
        resolve: Callable[[str, Value], Value],
        fail: Fail,
    ) -> None:
        self.target = target
        self.key = key
        self.arguments = arguments
        self._resolve = resolve
        self._fail = fail
        self._used: set[str] = set()
        self._chosen: tuple[int, int] | None = None

    @property
    def class_name(self) -> str:
        """The class's name without its modules."""
        return self.target.rpartition(".")[2]

    @property
    def name(self) -> str:
        """The class's name without its modules, and with the suffix d for a transform of a dictionary."""
        name = self.class_name
        for suffix in ("Dict", "D"):
            if name.endswith(suffix) and len(name) > len(suffix) + 1:
                return f"{name.removesuffix(suffix)}d"
        return name

    @property
    def is_monai(self) -> bool:
        """True if the class is one of MONAI's, by its name."""
        return "." not in self.target or self.target.startswith("monai.")

    def error(self, reason: str, argument: str | None = None) -> ModelInvalid:
        """Makes the error that refuses the component, or one of its arguments."""
        key = self.key if argument is None else f"{self.key}#{argument}"
        return self._fail(key, f"{self.name}{'' if argument is None else f'({argument})'}: {reason}")

    def refuse(self, reason: str, argument: str | None = None) -> NoReturn:
        """Refuses the component, or one of its arguments."""
        raise self.error(reason, argument)

    def choose(self, key: str) -> None:
        """Lets arguments with a value for each of several `keys` have the one for a key."""
        keys = self.texts("keys")
        if len(keys) > 1 and key in keys:
            self._chosen = (keys.index(key), len(keys))

    def take(self, argument: str, default: Value = None) -> Value:
        """Returns the value of an argument, which counts as used from now on."""
        self._used.add(argument)
        if argument not in self.arguments:
            return default
        value = self._resolve(f"{self.key}#{argument}", self.arguments[argument])
        return default if value is None else value

    def single(self, argument: str, default: Value = None) -> Value:
        """Returns an argument; of a list with a value for each key, that of the chosen one."""
        return self._single(self.take(argument, default))

    def flag(self, argument: str, default: bool = False) -> bool:
        """Returns an argument that is true or false."""
        value = self.single(argument, default)
        # Python takes any text for true, and configs have "True".
        if isinstance(value, str) and value.lower() == "true":
            value = True
        if not isinstance(value, bool):
            self.refuse(f"expected true or false, got {value!r}", argument)
        return value

    def number(self, argument: str, default: float | None = None) -> float:
        """Returns an argument that is a number."""
        found = self.optional_number(argument, default)
        if found is None:
            self.refuse("a number is required", argument)
        return found

    def optional_number(self, argument: str, default: float | None = None) -> float | None:
        """Returns an argument that is a number; None if it is missing."""
        value = self.single(argument, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(f"expected a number, got {value!r}", argument)
        # Text of a number may exceed what a float holds.
        if abs(value) > _GREATEST or isnan(value):
            self.refuse("expected a finite number", argument)
        return float(value)

    def whole(self, argument: str, default: int | None = None) -> int:
        """Returns an argument that is a whole number."""
        value = self.number(argument, default)
        if value != int(value):
            self.refuse(f"expected a whole number, got {value:g}", argument)
        return int(value)

    def text(self, argument: str, default: str | None = None) -> str:
        """Returns an argument that is text; a member of an enumeration of MONAI is its last name, in lower case."""
        value = self.single(argument, default)
        if isinstance(value, Symbol):
            value = value.name.rpartition(".")[2].lower()
        if not isinstance(value, str):
            self.refuse(f"expected text, got {value!r}", argument)
        return value

    def texts(self, argument: str, default: Sequence[str] = ()) -> list[str]:
        """Returns an argument that is text or a list of texts."""
        value = self.take(argument, list(default))
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list | tuple) or not all(isinstance(each, str) for each in values):
            self.refuse(f"expected text or a list of it, got {value!r}", argument)
        return [str(each) for each in values]

    def finish(self, ignored: Collection[str] = ()) -> None:
        """Refuses the first argument that was not used and is not among those that change nothing here."""
        for argument in self.arguments:
            if argument.startswith("_") or argument in self._used or argument in ignored:
                continue
            value = self._resolve(f"{self.key}#{argument}", self.arguments[argument])
            if value is not None:
                self.refuse("this argument cannot be mapped to a manifest", argument)

    def _single(self, value: Value) -> Value:
        """Returns the value for the chosen key, or for all keys, of a list with one for each."""
        if not isinstance(value, list | tuple) or not value:
            return value
        if len(value) == 1 or all(each == value[0] for each in value):
            return value[0]
        return value[self._chosen[0]] if self._chosen is not None and self._chosen[1] == len(value) else value
