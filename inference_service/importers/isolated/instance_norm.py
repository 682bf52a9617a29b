"""Exports instance and group normalisation of large windows as sums along one axis after the other.

ONNX Runtime's own operator adds up all values of a channel in float32. Where most of them are equal, as outside the
body, its error grows with their number: logits of a network with windows of 96³ voxels may differ by 0.002 of their
range, and probabilities of one with 256³ by 0.002.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf, prod
from typing import Any

import torch
from torch.onnx import symbolic_helper, symbolic_opset9

_SPATIAL = 2


@contextmanager
def summed_by_axis(opset: int, *, above: int) -> Iterator[None]:
    """Lets `torch.onnx.export` write a normalisation so, where it adds up more than a number of values."""

    def instance_norm(graph: Any, image: Any, *others: Any) -> Any:
        if _count(image, None) <= above:
            return symbolic_opset9.instance_norm(graph, image, *others)
        return _normalise(graph, image, None, *others[:2], epsilon=others[-2])

    def group_norm(graph: Any, image: Any, groups: Any, *others: Any) -> Any:
        number = symbolic_helper._get_const(groups, "i", "num_groups")
        if _count(image, number) <= above:
            return symbolic_opset9.group_norm(graph, image, groups, *others)
        return _normalise(graph, image, number, *others[:2], epsilon=others[2])

    operators: dict[str, Callable[..., Any]] = {"aten::instance_norm": instance_norm, "aten::group_norm": group_norm}
    for name, operator in operators.items():
        torch.onnx.register_custom_op_symbolic(name, operator, opset)
    try:
        yield
    finally:
        for name in operators:
            torch.onnx.unregister_custom_op_symbolic(name, opset)


def _count(image: Any, groups: int | None) -> float:
    """The values of one sum: no end where an axis has any size, and 0 where the channels are not known."""
    _, channels, *sizes = symbolic_helper._get_tensor_sizes(image) or (None, None)
    if channels is None:
        return 0.0
    return inf if None in sizes else float(prod(sizes) * (1 if groups is None else channels // groups))


def _normalise(graph: Any, image: Any, groups: int | None, weight: Any, bias: Any, *, epsilon: Any) -> Any:
    """The nodes of a normalisation of each channel, or of groups of them."""
    rank = symbolic_helper._get_tensor_rank(image)
    channels = symbolic_helper._get_tensor_dim_size(image, 1)

    def constant(value: torch.Tensor) -> Any:
        return graph.op("Constant", value_t=value)

    def reshaped(values: Any, size: int) -> Any:
        """With another second axis, which the third one makes up for; 0 stands for the size of an axis as it is."""
        return graph.op("Reshape", values, constant(torch.tensor([0, size, -1, *[0] * (rank - 3)])))

    def mean(values: Any) -> Any:
        for axis in range(rank - 1, _SPATIAL - 1, -1):
            values = graph.op("ReduceMean", values, constant(torch.tensor([axis])), keepdims_i=1)
        return values

    if groups is not None:
        image = reshaped(image, groups)
    centred = graph.op("Sub", image, mean(image))
    variance = mean(graph.op("Mul", centred, centred))
    least = torch.tensor(symbolic_helper._get_const(epsilon, "f", "eps"), dtype=torch.float32)
    deviation = graph.op("Sqrt", graph.op("Add", variance, constant(least)))
    if groups is not None:
        shape = torch.tensor([1, 1, channels // groups, *[1] * (rank - 3)])
        deviation = reshaped(graph.op("Expand", deviation, constant(shape)), channels)
        centred = reshaped(centred, channels)

    def of_channels(parameter: Any) -> Any:
        return graph.op("Reshape", parameter, constant(torch.tensor([1, -1, *[1] * (rank - _SPATIAL)])))

    if symbolic_helper._is_none(weight):
        normal = graph.op("Div", centred, deviation)
    else:
        # One pass over the image, and not two.
        normal = graph.op("Mul", centred, graph.op("Div", of_channels(weight), deviation))
    return normal if symbolic_helper._is_none(bias) else graph.op("Add", normal, of_channels(bias))
