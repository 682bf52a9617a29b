"""Sums that stay on the device that the network runs on: small ONNX graphs, run by ONNX Runtime beside it.

Only finished planes come back to the worker's memory, each voxel once; logits of overlapping windows would come several
times. It takes three times the memory of what is held.
"""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference_service.sessions import DeviceArray, Graph, Session
from inference_service.sums import Corner, Result, check_finite

_END = np.iinfo(np.int64).max

# The graphs in the language of onnx.parser, and what it makes of them: the package `onnx` is not needed to run them.
TEXTS: Mapping[str, str] = {
    "zeros": """<ir_version: 8, opset_import: ["": 17]>
        zeros (int64[4] shape) => (float[l, i, j, k] sums) { sums = ConstantOfShape (shape) }""",
    "add": """<ir_version: 8, opset_import: ["": 17]>
        add (float[l, i, j, k] held, LOGITS[n, l, x, y, z] logits, int64 index, float[x, y, z] weights, int64[8] pads,
             int64[3] first, int64[3] last, int64[3] axes, int64[3] steps) => (float[l, i, j, k] sums) {
            given = Gather <axis = 0> (logits, index)
            window = Cast <to = 1> (given)
            unflipped = Slice (window, first, last, axes, steps)
            weighted = Mul (unflipped, weights)
            placed = Pad (weighted, pads)
            sums = Add (held, placed)
        }""",
    "means": """<ir_version: 8, opset_import: ["": 17]>
        means (float[l, i, j, k] held, int64[1] first, int64[1] last, int64[1] axis, float[a, b, c] totals)
        => (float[l, a, b, c] means) {
            planes = Slice (held, first, last, axis)
            means = Div (planes, totals)
        }""",
    "move up": """<ir_version: 8, opset_import: ["": 17]>
        move_up (float[l, i, j, k] held, int64[1] first, int64[1] last, int64[1] axis, int64[8] pads)
        => (float[l, i, j, k] sums) {
            planes = Slice (held, first, last, axis)
            sums = Pad (planes, pads)
        }""",
}
# "add" for either precision of the network.
GRAPHS: Mapping[str, bytes] = {
    "zeros": b64decode(
        "CAg6YgogCgVzaGFwZRIEc3VtcyIPQ29uc3RhbnRPZlNoYXBlOgASBXplcm9zWhMKBXNoYXBlEgoKCAgHEgQKAggEYiIKBHN1bXMSGgoYCAES"
        "FAoDEgFsCgMSAWkKAxIBagoDEgFrQgQKABAR"
    ),
    "add": b64decode(
        "CAg6gQQKLQoGbG9naXRzCgVpbmRleBIFZ2l2ZW4iBkdhdGhlcioLCgRheGlzGACgAQI6AAoiCgVnaXZlbhIGd2luZG93IgRDYXN0KgkKAnRv"
        "GAGgAQI6AAo2CgZ3aW5kb3cKBWZpcnN0CgRsYXN0CgRheGVzCgVzdGVwcxIJdW5mbGlwcGVkIgVTbGljZToACiUKCXVuZmxpcHBlZAoHd2Vp"
        "Z2h0cxIId2VpZ2h0ZWQiA011bDoACh8KCHdlaWdodGVkCgRwYWRzEgZwbGFjZWQiA1BhZDoAChsKBGhlbGQKBnBsYWNlZBIEc3VtcyIDQWRk"
        "OgASA2FkZFoiCgRoZWxkEhoKGAgBEhQKAxIBbAoDEgFpCgMSAWoKAxIBa1opCgZsb2dpdHMSHwodCAESGQoDEgFuCgMSAWwKAxIBeAoDEgF5"
        "CgMSAXpaDwoFaW5kZXgSBgoECAcSAFogCgd3ZWlnaHRzEhUKEwgBEg8KAxIBeAoDEgF5CgMSAXpaEgoEcGFkcxIKCggIBxIECgIICFoTCgVm"
        "aXJzdBIKCggIBxIECgIIA1oSCgRsYXN0EgoKCAgHEgQKAggDWhIKBGF4ZXMSCgoICAcSBAoCCANaEwoFc3RlcHMSCgoICAcSBAoCCANiIgoE"
        "c3VtcxIaChgIARIUCgMSAWwKAxIBaQoDEgFqCgMSAWtCBAoAEBE="
    ),
    "means": b64decode(
        "CAg6+gEKKgoEaGVsZAoFZmlyc3QKBGxhc3QKBGF4aXMSBnBsYW5lcyIFU2xpY2U6AAoeCgZwbGFuZXMKBnRvdGFscxIFbWVhbnMiA0RpdjoA"
        "EgVtZWFuc1oiCgRoZWxkEhoKGAgBEhQKAxIBbAoDEgFpCgMSAWoKAxIBa1oTCgVmaXJzdBIKCggIBxIECgIIAVoSCgRsYXN0EgoKCAgHEgQK"
        "AggBWhIKBGF4aXMSCgoICAcSBAoCCAFaHwoGdG90YWxzEhUKEwgBEg8KAxIBYQoDEgFiCgMSAWNiIwoFbWVhbnMSGgoYCAESFAoDEgFsCgMS"
        "AWEKAxIBYgoDEgFjQgQKABAR"
    ),
    "move up": b64decode(
        "CAg66wEKKgoEaGVsZAoFZmlyc3QKBGxhc3QKBGF4aXMSBnBsYW5lcyIFU2xpY2U6AAobCgZwbGFuZXMKBHBhZHMSBHN1bXMiA1BhZDoAEgdt"
        "b3ZlX3VwWiIKBGhlbGQSGgoYCAESFAoDEgFsCgMSAWkKAxIBagoDEgFrWhMKBWZpcnN0EgoKCAgHEgQKAggBWhIKBGxhc3QSCgoICAcSBAoC"
        "CAFaEgoEYXhpcxIKCggIBxIECgIIAVoSCgRwYWRzEgoKCAgHEgQKAggIYiIKBHN1bXMSGgoYCAESFAoDEgFsCgMSAWkKAxIBagoDEgFrQgQK"
        "ABAR"
    ),
    "add half": b64decode(
        "CAg6gQQKLQoGbG9naXRzCgVpbmRleBIFZ2l2ZW4iBkdhdGhlcioLCgRheGlzGACgAQI6AAoiCgVnaXZlbhIGd2luZG93IgRDYXN0KgkKAnRv"
        "GAGgAQI6AAo2CgZ3aW5kb3cKBWZpcnN0CgRsYXN0CgRheGVzCgVzdGVwcxIJdW5mbGlwcGVkIgVTbGljZToACiUKCXVuZmxpcHBlZAoHd2Vp"
        "Z2h0cxIId2VpZ2h0ZWQiA011bDoACh8KCHdlaWdodGVkCgRwYWRzEgZwbGFjZWQiA1BhZDoAChsKBGhlbGQKBnBsYWNlZBIEc3VtcyIDQWRk"
        "OgASA2FkZFoiCgRoZWxkEhoKGAgBEhQKAxIBbAoDEgFpCgMSAWoKAxIBa1opCgZsb2dpdHMSHwodCAoSGQoDEgFuCgMSAWwKAxIBeAoDEgF5"
        "CgMSAXpaDwoFaW5kZXgSBgoECAcSAFogCgd3ZWlnaHRzEhUKEwgBEg8KAxIBeAoDEgF5CgMSAXpaEgoEcGFkcxIKCggIBxIECgIICFoTCgVm"
        "aXJzdBIKCggIBxIECgIIA1oSCgRsYXN0EgoKCAgHEgQKAggDWhIKBGF4ZXMSCgoICAcSBAoCCANaEwoFc3RlcHMSCgoICAcSBAoCCANiIgoE"
        "c3VtcxIaChgIARIUCgMSAWwKAxIBaQoDEgFqCgMSAWtCBAoAEBE="
    ),
}


class OnDevice:
    """A session whose logits are added up where they are computed.

    Args:
        session: Runs the network.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def run_there(self, windows: NDArray[np.float32]) -> "DeviceResult":
        """Turns windows (batch, channels, *window) into logits; errors are those of `Session.run`."""
        return DeviceResult(self._session.run_there(windows))

    def sums_there(self, shape: Sequence[int], axis: int, weights: NDArray[np.float32]) -> "DeviceSums":
        """Zeros; see `DeviceSums`."""
        return DeviceSums(self._session, shape, axis, weights)


class DeviceResult:
    """A batch of logits on the device.

    Args:
        logits: Shape (batch, labels, *window), float32 or float16.
    """

    def __init__(self, logits: DeviceArray) -> None:
        self.logits = logits

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, labels, *window)."""
        return tuple(self.logits.shape())

    def on_host(self) -> NDArray[np.float32]:
        """A copy, made once: whoever adds a window up may change it."""
        return self._copy

    @cached_property
    def _copy(self) -> NDArray[np.float32]:
        return np.array(self.logits.numpy(), dtype=np.float32)


class DeviceSums:
    """Sums on the device of a session.

    Args:
        session: Runs the network.
        shape: Of what is held: (labels, i, j, k).
        axis: The axis that planes leave along.
        weights: Of a window, shape (*window).

    Raises:
        OutOfMemory: There is no memory for them.
    """

    def __init__(self, session: Session, shape: Sequence[int], axis: int, weights: NDArray[np.float32]) -> None:
        self._session, self._shape, self._axis = session, tuple(shape), axis
        self._weights = session.put_there(weights)
        self._graphs: dict[str, Graph] = {}
        self._held = self._run("zeros", shape=np.array(shape))

    def add(self, result: Result, number: int, flip: Sequence[int], corner: Corner) -> None:
        """See `Sums`; the result is a `DeviceResult` of the same session."""
        assert isinstance(result, DeviceResult)
        window = self._weights.shape()
        after = [size - start - extent for size, start, extent in zip(self._shape[1:], corner, window, strict=True)]
        mirrored = [axis in flip for axis in range(3)]
        self._held = self._run(
            "add half" if result.logits.data_type() == "tensor(float16)" else "add",
            held=self._held, logits=result.logits, index=np.array(number), weights=self._weights,
            pads=np.array([0, *corner, 0, *after]),
            first=np.where(mirrored, -1, 0), last=np.where(mirrored, -_END, _END), axes=np.arange(1, 4),
            steps=np.where(mirrored, -1, 1),
        )  # fmt: skip

    def means(self, planes: slice, total: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Sums`."""
        divided = self._run(
            "means", held=self._held, first=np.array([planes.start]), last=np.array([planes.stop]),
            axis=np.array([self._axis + 1]), totals=np.ascontiguousarray(np.moveaxis(total, 0, self._axis)),
        )  # fmt: skip
        means: NDArray[np.float32] = np.ascontiguousarray(np.moveaxis(divided.numpy(), self._axis + 1, 0))
        check_finite(means)
        return means

    def move_up(self, count: int) -> None:
        """See `Sums`."""
        zeros = np.zeros(8, np.int64)
        zeros[4 + self._axis + 1] = count
        self._held = self._run(
            "move up", held=self._held, first=np.array([count]), last=np.array([_END]),
            axis=np.array([self._axis + 1]), pads=zeros,
        )  # fmt: skip

    def on_host(self) -> NDArray[np.float32]:
        """A copy of what is held."""
        return np.array(self._held.numpy())

    def _run(self, name: str, **given: NDArray[Any] | DeviceArray) -> DeviceArray:
        if name not in self._graphs:
            self._graphs[name] = self._session.beside(GRAPHS[name])
        return self._graphs[name].run(**given)
