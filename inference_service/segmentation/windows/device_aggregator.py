"""Aggregation on the device that the network runs on, by small ONNX graphs that ONNX Runtime runs in sessions there.

Only finished planes are copied to the worker's memory, so each voxel is copied once; the logits of overlapping windows
would be copied several times. Aggregation takes three times the memory of the sums on the device.
"""

from base64 import b64decode
from collections.abc import Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import GpuOutOfMemory
from inference_service.engine.session import DeviceArray, Session
from inference_service.segmentation.windows.aggregator import BatchLogits, check_finite
from inference_service.segmentation.windows.tiling import Corner

_END = np.iinfo(np.int64).max
# ONNX Runtime's CUDA kernels index arrays with 32-bit integers.
_MAX_VALUES = 2**31 - 1

# The graphs in the language of onnx.parser, and below the files that it makes of them, so that the package `onnx` is
# not needed to run them.
TEXTS: Mapping[str, str] = {
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
        move_up (float[l, i, j, k] held, int64[8] pads) => (float[l, i, j, k] sums) { sums = Pad (held, pads) }""",
}
# "add" is for logits in float32, "add half" for float16.
GRAPHS: Mapping[str, bytes] = {
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
        "CAg6gAEKGQoEaGVsZAoEcGFkcxIEc3VtcyIDUGFkOgASB21vdmVfdXBaIgoEaGVsZBIaChgIARIUCgMSAWwKAxIBaQoDEgFqCgMSAWtaEgoE"
        "cGFkcxIKCggIBxIECgIICGIiCgRzdW1zEhoKGAgBEhQKAxIBbAoDEgFpCgMSAWoKAxIBa0IECgAQEQ=="
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


class DeviceSession:
    """A session as a `DeviceNetwork`: its logits stay on its device and are aggregated there.

    Args:
        session: Runs the network.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, windows: NDArray[np.float32]) -> "DeviceLogits":
        """Returns the logits of windows (batch, channels, *window); raises the errors of `Session.run`."""
        return DeviceLogits(self._session, self._session.run_on_device(windows))

    def aggregator(self, shape: Sequence[int], axis: int, weights: NDArray[np.float32]) -> "DeviceAggregator":
        """Returns an empty aggregator; see `DeviceAggregator`."""
        return DeviceAggregator(self._session, shape, axis, weights)


class DeviceLogits:
    """A batch of logits on a session's device.

    Args:
        session: Ran the network.
        logits: Shape (batch, labels, *window), float32 or float16.
    """

    def __init__(self, session: Session, logits: DeviceArray) -> None:
        self._session = session
        self.logits = logits

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, labels, *window)."""
        return tuple(self.logits.shape())

    def to_host(self) -> NDArray[np.float32]:
        """Returns the logits in the worker's memory; only the first call copies them."""
        return self._on_host

    @cached_property
    def _on_host(self) -> NDArray[np.float32]:
        return self._session.to_host(self.logits)


class DeviceAggregator:
    """An aggregator on a session's device. Its graphs read the sums from one array and write them to another.

    Args:
        session: Runs the network.
        shape: Shape of the sums, (labels, i, j, k).
        axis: Axis of (i, j, k) along which finished planes leave.
        weights: Importance map of a window, shape (*window).

    Raises:
        GpuOutOfMemory: The device has no memory for the sums, or they have more values than its kernels can index.
    """

    def __init__(self, session: Session, shape: Sequence[int], axis: int, weights: NDArray[np.float32]) -> None:
        if prod(shape) > _MAX_VALUES:
            raise GpuOutOfMemory(f"{prod(shape)} values are more than a GPU's kernels count")
        self._session = session
        self._axis = axis
        self._weights = session.to_device(weights)
        self._sums = session.to_device(np.zeros(shape, np.float32))
        self._other = session.empty_on_device(shape)

    def add(self, batch: BatchLogits, number: int, flipped_axes: Sequence[int], corner: Corner) -> None:
        """See `Aggregator`.

        Raises:
            TypeError: The logits do not lie on the session's device.
        """
        if not isinstance(batch, DeviceLogits):
            raise TypeError(f"expected DeviceLogits, got {type(batch).__name__}")
        sizes = self._sums.shape()[1:]
        window = self._weights.shape()
        after = [size - start - extent for size, start, extent in zip(sizes, corner, window, strict=True)]
        flipped = [axis in flipped_axes for axis in range(3)]
        self._update(
            "add half" if batch.logits.data_type() == "tensor(float16)" else "add",
            logits=batch.logits,
            index=np.array(number),
            weights=self._weights,
            pads=np.array([0, *corner, 0, *after]),
            first=np.where(flipped, -1, 0),
            last=np.where(flipped, -_END, _END),
            axes=np.arange(1, 4),
            steps=np.where(flipped, -1, 1),
        )

    def means(self, planes: slice, total_weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Aggregator`."""
        inputs = {
            "held": self._sums,
            "first": np.array([planes.start]),
            "last": np.array([planes.stop]),
            "axis": np.array([self._axis + 1]),
            "totals": np.ascontiguousarray(np.moveaxis(total_weights, 0, self._axis)),
        }
        divided = self._session.to_host(self._session.run_graph(GRAPHS["means"], inputs))
        means: NDArray[np.float32] = np.ascontiguousarray(np.moveaxis(divided, self._axis + 1, 0))
        check_finite(means)
        return means

    def move_up(self, count: int) -> None:
        """See `Aggregator`."""
        pads = np.zeros(8, np.int64)
        pads[1 + self._axis] = -count
        pads[5 + self._axis] = count
        self._update("move up", pads=pads)

    def to_host(self) -> NDArray[np.float32]:
        """See `TransferableAggregator`."""
        return self._session.to_host(self._sums)

    def _update(self, graph: str, **inputs: NDArray[Any] | DeviceArray) -> None:
        """Replaces the sums by the output of a graph that takes them and other inputs."""
        self._session.run_graph(GRAPHS[graph], {"held": self._sums, **inputs}, into=self._other)
        self._sums, self._other = self._other, self._sums
