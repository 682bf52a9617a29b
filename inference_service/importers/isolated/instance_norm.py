"""Exports instance normalisation of large windows as sums along one axis after the other.

ONNX Runtime's own operator adds up all values of a channel in float32. The sum of 256³ values is so inexact that
probabilities may differ by 0.002.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.onnx import symbolic_helper

_OPERATOR = "aten::instance_norm"
_SPATIAL = 2


@contextmanager
def summed_by_axis(opset: int, *, applies: bool) -> Iterator[None]:
    """Lets `torch.onnx.export` write instance normalisation so, if it applies."""
    if not applies:
        yield
        return
    torch.onnx.register_custom_op_symbolic(_OPERATOR, _instance_norm, opset)
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic(_OPERATOR, opset)


def _instance_norm(graph: Any, image: Any, weight: Any, bias: Any, *others: Any) -> Any:
    """The nodes of the normalisation; the parameters are those of torch.instance_norm, epsilon the last but one."""
    rank = symbolic_helper._get_tensor_rank(image)
    epsilon = torch.tensor(symbolic_helper._get_const(others[-2], "f", "eps"), dtype=torch.float32)

    def constant(value: torch.Tensor) -> Any:
        return graph.op("Constant", value_t=value)

    def mean(values: Any) -> Any:
        for axis in range(rank - 1, _SPATIAL - 1, -1):
            values = graph.op("ReduceMean", values, constant(torch.tensor([axis])), keepdims_i=1)
        return values

    centred = graph.op("Sub", image, mean(image))
    variance = mean(graph.op("Mul", centred, centred))
    normal = graph.op("Div", centred, graph.op("Sqrt", graph.op("Add", variance, constant(epsilon))))
    shape = constant(torch.tensor([1, -1, *[1] * (rank - _SPATIAL)]))
    for operation, parameter in (("Mul", weight), ("Add", bias)):
        if not symbolic_helper._is_none(parameter):
            normal = graph.op(operation, normal, graph.op("Reshape", parameter, shape))
    return normal
