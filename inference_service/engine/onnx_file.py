"""Reads the structure of an ONNX file, a protocol buffer, before ONNX Runtime does: is it whole, and is it all of it?

ONNX Runtime reads a tensor with external data, or a compiled part of a network, from another file: below the working
directory, or wherever a link leads. The manifest's sha256 covers no such file, so that they are refused.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

from inference_service.core.errors import ModelInvalid

MAX_NETWORK_BYTES = 2**31 - 1
"""Upper limit of a protocol buffer's size."""

# Fields of onnx.proto: those that lead from the model to its nodes and tensors, by message and number.
_PARTS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_GRAPH = 7
_OPSETS = 8
_OP_TYPE = 4
_EXTERNAL_DATA = 13
_DATA_LOCATION = 14
_STORED_INSIDE = b"\0"
# Fields of an entry of external data.
_KEY = 1
_VALUE = 2
_NOT_LISTED = "the model's network has external data that its manifest does not list in external_data"
# The node that stands for a part of the network which an execution provider has compiled.
_COMPILED = b"EPContext"
# Wire types, and the bytes of those with a fixed length.
_VARINT = 0
_LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}
_MAX_VARINT_BYTES = 10
_MAX_HEADER_BYTES = 2 * _MAX_VARINT_BYTES
# The fields of a model beside its graph are few: versions, names and notes.
_MAX_MODEL_FIELDS = 10_000


class _Field(NamedTuple):
    """A field of a message.

    Attributes:
        number: Number in onnx.proto.
        wire_type: Encoding of the value.
        start: Index of the value's first byte.
        end: Index after its last byte, which may lie beyond the end of the data.
    """

    number: int
    wire_type: int
    start: int
    end: int


def is_truncated(file: BinaryIO, size: int) -> bool:
    """Returns True if a file ends within a model, as one that is being copied does.

    Args:
        file: Its content need not be ONNX; only the headers of the outermost fields are read.
        size: Bytes of the file.
    """
    seen = set()
    at = 0
    for _ in range(_MAX_MODEL_FIELDS):
        if at >= size:
            break
        file.seek(at)
        try:
            field = _read_field(file.read(_MAX_HEADER_BYTES), 0)
        except IndexError:
            return True
        except ValueError:
            return False
        seen.add(field.number)
        at += field.end
    return at > size or not {_GRAPH, _OPSETS} <= seen


class NetworkContent(NamedTuple):
    """The verified content of a network's files.

    Attributes:
        network: The ONNX file.
        external_data: The files with tensors of the network, by the name that it gives them.
    """

    network: bytes
    external_data: Mapping[str, bytes] = {}


def check_self_contained(network: bytes, *, external: Container[str] = ()) -> None:
    """Refuses a network of which a part lies in an unknown file.

    Args:
        network: The ONNX file's content.
        external: Names of the files that may hold tensors.

    Raises:
        ModelInvalid: A tensor has external data in another file, a node is a compiled part of a network, or the content
            is not ONNX.
    """
    data = memoryview(network)
    messages = [("model", 0, len(data))]
    while messages:
        kind, start, end = messages.pop()
        for field in _fields(data, start, end):
            value = data[field.start : field.end]
            if kind == "tensor" and field.number == _EXTERNAL_DATA:
                _check_location(data, field, external)
            elif kind == "tensor" and field.number == _DATA_LOCATION and value != _STORED_INSIDE and not external:
                raise ModelInvalid(_NOT_LISTED)
            if kind == "node" and field.number == _OP_TYPE and value == _COMPILED:
                raise ModelInvalid("the model's network has a compiled part: export it without EPContext nodes")
            part = _PARTS[kind].get(field.number)
            if part is not None and field.wire_type == _LENGTH_DELIMITED:
                messages.append((part, field.start, field.end))


def _check_location(data: memoryview, entry: _Field, external: Container[str]) -> None:
    """Checks the file that an entry of a tensor's external data names: a pair of the texts key and value."""
    texts = {field.number: bytes(data[field.start : field.end]) for field in _fields(data, entry.start, entry.end)}
    if texts.get(_KEY) == b"location" and texts.get(_VALUE, b"").decode(errors="replace") not in external:
        raise ModelInvalid(_NOT_LISTED)


def _fields(data: Sequence[int], start: int, end: int) -> Iterator[_Field]:
    while start < end:
        try:
            field = _read_field(data, start)
        except (IndexError, ValueError):
            field = None
        if field is None or field.end > end:
            raise ModelInvalid("the model's network is truncated or damaged: it is not a valid ONNX file")
        yield field
        start = field.end


def _read_field(data: Sequence[int], at: int) -> _Field:
    """Reads the header of a field.

    Raises:
        IndexError: The data end within it.
        ValueError: It is invalid.
    """
    key, at = _read_varint(data, at)
    # Decoders keep 32 bits of it.
    number, wire_type = divmod(key & 0xFFFF_FFFF, 8)
    if wire_type == _VARINT:
        _, end = _read_varint(data, at)
    elif wire_type == _LENGTH_DELIMITED:
        length, at = _read_varint(data, at)
        end = at + length
    elif wire_type in _FIXED_BYTES:
        end = at + _FIXED_BYTES[wire_type]
    else:
        raise ValueError(f"invalid wire type {wire_type}")
    if number == 0:
        raise ValueError("invalid field number 0")
    return _Field(number, wire_type, at, end)


def _read_varint(data: Sequence[int], at: int) -> tuple[int, int]:
    """Reads a number of seven bits a byte, the lowest first, and returns the index after it too."""
    value = 0
    for count in range(_MAX_VARINT_BYTES):
        byte = data[at + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, at + count + 1
    raise ValueError("a varint has more than ten bytes")
