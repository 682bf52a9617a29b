"""Evaluates the expressions in a MONAI bundle's config: a small part of Python, interpreted here and never by `eval`.

It covers literals, references, arithmetic, comparisons, conditional expressions, lists, dictionaries, indexing and a
few functions. Everything else is refused by name.
"""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, cast

from inference_service.importers.monai.operations import (
    BINARY,
    CLASS,
    COMPARISONS,
    FUNCTIONS,
    UNARY,
    call_method,
    named,
)
from inference_service.importers.monai.values import (
    Array,
    FromCheckpoint,
    Function,
    Refused,
    Value,
    bounded,
    items,
    scalar,
)

_MAX_CHARACTERS = 4000
_MAX_STEPS = 5_000

# MONAI's ReferenceResolver: `@` and an id whose parts are separated by # or ::, before them one for each level upwards.
REFERENCE = re.compile(r"@(?:#|::)*\w*(?:(?:#|::)\w+)*")
_PLACEHOLDER = "_reference_"
Resolve: TypeAlias = Callable[[str], Value]
Construct: TypeAlias = Callable[[str, Mapping[str, Value]], Value]


def _refuse_to_construct(name: str, _arguments: Mapping[str, Value]) -> Value:
    raise Refused(f"the function {name} is not interpreted here")


def evaluate(text: str, resolve: Resolve, construct: Construct = _refuse_to_construct) -> Value:
    """Evaluates an expression.

    Args:
        text: The expression, without the leading `$`.
        resolve: Returns the value of a reference, which it gets as it is written, such as `@a#b`.
        construct: Returns what stands for a call of a class of MONAI, by its name and named arguments; nothing is
            called.

    Raises:
        Refused: The expression is invalid, or uses what is not interpreted here.

    >>> evaluate("[1.5] * 3 if @highres else [3.0]", lambda reference: True)
    [1.5, 1.5, 1.5]
    """
    if len(text) > _MAX_CHARACTERS:
        raise Refused(f"an expression has {len(text)} characters; at most {_MAX_CHARACTERS} are read")
    references: list[str] = []

    def name_reference(found: re.Match[str]) -> str:
        references.append(found[0])
        return f"{_PLACEHOLDER}{len(references) - 1}"

    try:
        tree = ast.parse(REFERENCE.sub(name_reference, text).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Refused(f"{_shortened(text)} is not an expression of Python") from error
    evaluation = _Evaluation(lambda number: resolve(references[number]), construct)
    try:
        return evaluation.value(tree.body)
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Refused(f"{_shortened(text)} fails: {error}") from error


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Evaluation:
    """The evaluation of one expression, within limits on its steps and on the size of its values."""

    def __init__(self, reference: Callable[[int], Value], construct: Construct) -> None:
        self._reference = reference
        self._construct = construct
        self._names: dict[str, Value] = {}
        self._steps = 0

    def value(self, node: ast.AST) -> Value:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise Refused(f"an expression takes more than {_MAX_STEPS} steps")
        evaluate_node = _NODES.get(type(node))
        if evaluate_node is None:
            raise Refused(f"{_shortened(ast.unparse(node))} is Python that is not interpreted here")
        return bounded(evaluate_node(self, node))

    def values(self, nodes: Sequence[ast.AST]) -> list[Value]:
        found: list[Value] = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                found.extend(items(self.value(node.value)))
            else:
                found.append(self.value(node))
        return found

    def constant(self, node: ast.Constant) -> Value:
        if node.value is not None and not isinstance(node.value, bool | int | float | str):
            raise Refused(f"{ast.unparse(node)} is not a value of a config")
        return node.value

    def name(self, node: ast.Name) -> Value:
        if node.id.startswith(_PLACEHOLDER):
            return self._reference(int(node.id.removeprefix(_PLACEHOLDER)))
        if node.id in self._names:
            return self._names[node.id]
        return named(node.id)

    def attribute(self, node: ast.Attribute) -> Value:
        dotted = _dotted(node)
        if dotted is None:
            raise Refused(f"the attribute {node.attr} is not interpreted here")
        return named(dotted)

    def call(self, node: ast.Call) -> Value:
        arguments = self.values(node.args)
        keywords = {keyword.arg: self.value(keyword.value) for keyword in node.keywords if keyword.arg}
        if len(keywords) != len(node.keywords):
            raise Refused("** in a call is not interpreted here")
        dotted = _dotted(node.func)
        if dotted is not None and dotted in FUNCTIONS:
            return FUNCTIONS[dotted](*arguments, **keywords)
        if dotted is not None and CLASS.fullmatch(dotted) and not arguments:
            return self._construct(dotted, keywords)
        if isinstance(node.func, ast.Attribute) and (dotted is None or dotted.split(".")[0] in self._names):
            return call_method(self.value(node.func.value), node.func.attr, arguments, keywords)
        raise Refused(f"the function {_shortened(ast.unparse(node.func))} is not interpreted here")

    def binary(self, node: ast.BinOp) -> Value:
        operation = BINARY.get(type(node.op))
        if operation is None:
            raise Refused(f"the operator in {_shortened(ast.unparse(node))} is not interpreted here")
        return operation(self.value(node.left), self.value(node.right))

    def unary(self, node: ast.UnaryOp) -> Value:
        return UNARY[type(node.op)](self.value(node.operand))

    def boolean(self, node: ast.BoolOp) -> Value:
        stop_at = isinstance(node.op, ast.Or)
        result: Value = None
        for operand in node.values:
            result = self.value(operand)
            if bool(result) is stop_at:
                break
        return result

    def comparison(self, node: ast.Compare) -> Value:
        left = self.value(node.left)
        for compare, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.value(right_node)
            if not COMPARISONS[type(compare)](left, right):
                return False
            left = right
        return True

    def conditional(self, node: ast.IfExp) -> Value:
        return self.value(node.body if self.value(node.test) else node.orelse)

    def dictionary(self, node: ast.Dict) -> Value:
        if any(key is None for key in node.keys):
            raise Refused("** in a dictionary is not interpreted here")
        keys = [cast("str", self.value(key)) for key in node.keys if key is not None]
        return dict(zip(keys, self.values(node.values), strict=True))

    def subscript(self, node: ast.Subscript) -> Value:
        container = self.value(node.value)
        if isinstance(node.slice, ast.Slice):
            parts = (node.slice.lower, node.slice.upper, node.slice.step)
            index: Value = slice(*(None if part is None else self.value(part) for part in parts))
        else:
            index = self.value(node.slice)
        if isinstance(container, FromCheckpoint) and isinstance(index, str):
            return FromCheckpoint(container.path, (*container.keys, index))
        if not isinstance(container, Mapping | list | tuple | str):
            raise Refused(f"{_shortened(ast.unparse(node))}: only a list, a dictionary or text is indexed")
        found = cast("Value", container[index])  # type: ignore[index, call-overload]
        return Array(items(found)) if isinstance(container, Array) and isinstance(index, slice) else found

    def comprehension(self, node: ast.ListComp | ast.GeneratorExp) -> Value:
        generator = node.generators[0]
        if len(node.generators) > 1 or not isinstance(generator.target, ast.Name):
            raise Refused(
                f"{_shortened(ast.unparse(node))}: only a comprehension with one variable is interpreted here"
            )
        outer = dict(self._names)
        found = []
        for item in items(self.value(generator.iter)):
            self._names[generator.target.id] = item
            if all(self.value(condition) for condition in generator.ifs):
                found.append(self.value(node.elt))
        self._names = outer
        return found

    def text(self, node: ast.JoinedStr) -> Value:
        parts = []
        for part in node.values:
            plain = isinstance(part, ast.FormattedValue) and part.conversion == -1 and part.format_spec is None
            if not plain and not isinstance(part, ast.Constant):
                raise Refused(f"{_shortened(ast.unparse(node))}: a format is not interpreted here")
            parts.append(str(scalar(self.value(part.value if isinstance(part, ast.FormattedValue) else part))))
        return "".join(parts)

    def function(self, node: ast.Lambda) -> Value:
        return Function(ast.unparse(node), node)


_NODES: dict[type[ast.AST], Callable[..., Value]] = {
    ast.Constant: _Evaluation.constant,
    ast.Name: _Evaluation.name,
    ast.Attribute: _Evaluation.attribute,
    ast.Call: _Evaluation.call,
    ast.BinOp: _Evaluation.binary,
    ast.UnaryOp: _Evaluation.unary,
    ast.BoolOp: _Evaluation.boolean,
    ast.Compare: _Evaluation.comparison,
    ast.IfExp: _Evaluation.conditional,
    ast.List: lambda evaluation, node: evaluation.values(node.elts),
    ast.Tuple: lambda evaluation, node: tuple(evaluation.values(node.elts)),
    ast.Dict: _Evaluation.dictionary,
    ast.Subscript: _Evaluation.subscript,
    ast.ListComp: _Evaluation.comprehension,
    ast.GeneratorExp: _Evaluation.comprehension,
    ast.JoinedStr: _Evaluation.text,
    ast.Lambda: _Evaluation.function,
}


def _dotted(node: ast.AST) -> str | None:
    """The name that an attribute of an attribute of a name spells, such as torch.cuda.is_available."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id.startswith(_PLACEHOLDER):
        return None
    return ".".join([node.id, *reversed(names)])
