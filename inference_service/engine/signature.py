"""Compares the inputs and outputs of a network with the part of the manifest that it belongs to."""

from collections.abc import Sequence

from inference_service.contract.part import Part
from inference_service.core.errors import ModelInvalid

_Shape = Sequence[int | None]
# Batch, channels, height and width.
_PLANE_DIMENSIONS = 4


def check_signature(title: str, part: Part, inputs: Sequence[_Shape], output: _Shape) -> None:
    """Checks the shapes of a network's inputs and of its output.

    Args:
        title: The model, as the error names it.
        part: The part that the network belongs to.
        inputs: Shape of each input, None for a free dimension. Expected: one input of (batch, channels, *window), or
            of (batch, channels, h, w) for a network for planes.
        output: Shape of the output with the logits. Expected: (batch, labels, *window), or that of a plane.

    Raises:
        ModelInvalid: The shapes differ from the manifest.
    """
    batch = inputs[0][0] if inputs and inputs[0] else None
    window = list(part.window)
    plane = plane_axis(part, inputs[0]) if inputs else None
    if plane is not None:
        del window[plane]
    for role, shapes, count in (("input", inputs, part.input_channels), ("output", [output], len(part.outputs))):
        expected = [batch, count, *window]
        if len(shapes) != 1 or not _fits(shapes[0], expected):
            shape = [size or "any" for size in expected]
            raise ModelInvalid(f"model {title}: expected one {role} of shape {shape}, got {list(map(list, shapes))}")


def plane_axis(part: Part, input_shape: _Shape) -> int | None:
    """Returns the axis of the window (0, 1, 2) that a network for planes lacks; None for a network for volumes."""
    if len(input_shape) != _PLANE_DIMENSIONS or 1 not in part.window:
        return None
    return part.window.index(1)


def _fits(shape: _Shape, expected: _Shape) -> bool:
    return len(shape) == len(expected) and all(
        got != 0 and (None in (got, want) or got == want) for got, want in zip(shape, expected, strict=True)
    )
