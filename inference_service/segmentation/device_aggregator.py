"""Sums that stay on the device that the network runs on: small ONNX graphs, run by ONNX Runtime beside it.

Only finished planes come back to the worker's memory, each voxel once; logits of overlapping windows would come several
times. It takes three times the memory of what is held.
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
from inference_service.segmentation.aggregator import BatchLogits, Corner, check_finite

_END = np.iinfo(np.int64).max
# CUDA's kernels of ONNX Runtime count in 32 bits.
_MOST_VALUES = 2**31 - 1

# The graphs in the language of onnx.parser, and what it makes of them: the package `onnx` is not needed to run them.
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
# "add" for either precision of the network.
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
    """A session whose logits are added up where they are computed.

    Args:
        session: Runs the network.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def run(self, windows: NDArray[np.float32]) -> "DeviceLogits":
        """Turns windows (batch, channels, *window) into logits; errors are those of `Session.run`."""
        return DeviceLogits(self._session, self._session.run_on_device(windows))

    def aggregator(self, shape: Sequence[int], axis: int, weights: NDArray[np.float32]) -> "DeviceAggregator":
        """Zeros; see `DeviceAggregator`."""
        return DeviceAggregator(self._session, shape, axis, weights)


class DeviceLogits:
    """A batch of logits on the device.

    Args:
        session: Ran the network.
        logits: Shape (batch, labels, *window), float32 or float16.
    """

    def __init__(self, session: Session, logits: DeviceArray) -> None:
        self._session, self.logits = session, logits

    @property
    def shape(self) -> tuple[int, ...]:
        """(batch, labels, *window)."""
        return tuple(self.logits.shape())

    def to_host(self) -> NDArray[np.float32]:
        """The same in the worker's memory, copied once."""
        return self._on_host

    @cached_property
    def _on_host(self) -> NDArray[np.float32]:
        return self._session.to_host(self.logits)


class DeviceAggregator:
    """Sums on the device of a session, written from one of two arrays to the other.

    Args:
        session: Runs the network.
        shape: Of what is held: (labels, i, j, k).
        axis: The axis that planes leave along.
        weights: Of a window, shape (*window).

    Raises:
        GpuOutOfMemory: There is no memory for them.
    """

    def __init__(self, session: Session, shape: Sequence[int], axis: int, weights: NDArray[np.float32]) -> None:
        if prod(shape) > _MOST_VALUES:
            raise GpuOutOfMemory(f"{prod(shape)} values are more than a GPU's kernels count")
        self._session, self._axis = session, axis
        self._weights = session.to_device(weights)
        self._held, self._other = session.to_device(np.zeros(shape, np.float32)), session.empty_on_device(shape)

    def add(self, result: BatchLogits, number: int, flip: Sequence[int], corner: Corner) -> None:
        """See `Aggregator`; the result is one of the same session."""
        assert isinstance(result, DeviceLogits)
        sizes, window = self._held.shape()[1:], self._weights.shape()
        after = [size - start - extent for size, start, extent in zip(sizes, corner, window, strict=True)]
        mirrored = [axis in flip for axis in range(3)]
        self._replace(
            "add half" if result.logits.data_type() == "tensor(float16)" else "add",
            logits=result.logits, index=np.array(number), weights=self._weights,
            pads=np.array([0, *corner, 0, *after]),
            first=np.where(mirrored, -1, 0), last=np.where(mirrored, -_END, _END), axes=np.arange(1, 4),
            steps=np.where(mirrored, -1, 1),
        )  # fmt: skip

    def means(self, planes: slice, total: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Aggregator`."""
        given = {
            "held": self._held, "first": np.array([planes.start]), "last": np.array([planes.stop]),
            "axis": np.array([self._axis + 1]), "totals": np.ascontiguousarray(np.moveaxis(total, 0, self._axis)),
        }  # fmt: skip
        divided = self._session.to_host(self._session.run_graph(GRAPHS["means"], given))
        means: NDArray[np.float32] = np.ascontiguousarray(np.moveaxis(divided, self._axis + 1, 0))
        check_finite(means)
        return means

    def move_up(self, count: int) -> None:
        """See `Aggregator`."""
        pads = np.zeros(8, np.int64)
        pads[[1 + self._axis, 5 + self._axis]] = -count, count
        self._replace("move up", pads=pads)

    def to_host(self) -> NDArray[np.float32]:
        """What is held, in the worker's memory."""
        return self._session.to_host(self._held)

    def _replace(self, graph: str, **given: NDArray[Any] | DeviceArray) -> None:
        self._session.run_graph(GRAPHS[graph], {"held": self._held, **given}, into=self._other)
        self._held, self._other = self._other, self._held
