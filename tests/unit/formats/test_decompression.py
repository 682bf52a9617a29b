"""Compressed files: each format, several streams, streams one within another, damage, and windows without limits."""

import bz2
import gzip
import itertools
import lzma
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from inference_service.core.errors import InputCorrupt, UnsupportedFormat
from inference_service.formats.decompression import find_layers, open_decompressed, read_start

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CONTENT = np.random.default_rng(0).integers(0, 50, 300_000, dtype=np.uint8).tobytes()
# A frame that decoders skip.
SKIPPED = bytes.fromhex("502a4d18") + (4).to_bytes(4, "little") + b"abcd"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "Zstandard": lambda data: zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1}),
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], bytes]:
    def read_bytes(content: bytes) -> bytes:
        (tmp_path / "file").write_bytes(content)
        with open_decompressed(tmp_path / "file") as stream:
            return stream.read()

    return read_bytes


@pytest.mark.parametrize("name", COMPRESS)
@pytest.mark.parametrize("content", [CONTENT, b"", b"x"], ids=["long", "empty", "short"])
def test_a_format_is_recognised_and_decompressed(
    tmp_path: Path, read: Callable[[bytes], bytes], name: str, content: bytes
) -> None:
    assert read(COMPRESS[name](content)) == content
    assert [layer.name for layer in find_layers(tmp_path / "file")] == [name]
    assert read_start(tmp_path / "file", 100) == content[:100]


@pytest.mark.parametrize("content", [CONTENT, b"", b"\x1f", b"BZh9", b"BZh9 text", b"\xfd7zXZ", bytes(1000)])
def test_other_content_is_read_as_it_is(tmp_path: Path, read: Callable[[bytes], bytes], content: bytes) -> None:
    assert read(content) == content
    assert find_layers(tmp_path / "file") == []


@pytest.mark.parametrize("name", COMPRESS)
@pytest.mark.parametrize("between", [b"", bytes(4), bytes(100_000)], ids=["", "zeros", "many zeros"])
def test_several_streams_are_read_as_one(read: Callable[[bytes], bytes], name: str, between: bytes) -> None:
    parts = [CONTENT, b"", CONTENT[::-1], b"x"]
    assert read(b"".join(COMPRESS[name](part) + between for part in parts)) == b"".join(parts)


def test_frames_that_decoders_skip_are_skipped(read: Callable[[bytes], bytes]) -> None:
    compressed = COMPRESS["Zstandard"](CONTENT)
    assert read(SKIPPED + compressed + SKIPPED + compressed + SKIPPED) == CONTENT * 2


@pytest.mark.parametrize("name", COMPRESS)
def test_a_truncated_stream_is_refused(read: Callable[[bytes], bytes], name: str) -> None:
    compressed = COMPRESS[name](CONTENT)
    for length in itertools.chain(range(11, 60), range(1000, len(compressed), 9001), [len(compressed) - 1]):
        with pytest.raises(InputCorrupt, match=f"{name} stream is truncated"):
            read(compressed[:length])


@pytest.mark.parametrize("name", COMPRESS)
def test_changed_bytes_are_noticed(read: Callable[[bytes], bytes], name: str) -> None:
    compressed = bytearray(COMPRESS[name](CONTENT))
    compressed[len(compressed) // 2] ^= 0x55
    with pytest.raises(InputCorrupt, match=f"{name} stream is truncated or damaged"):
        read(bytes(compressed))


@pytest.mark.parametrize("name", COMPRESS)
def test_data_after_the_last_stream_are_refused(read: Callable[[bytes], bytes], name: str) -> None:
    with pytest.raises(InputCorrupt):
        read(COMPRESS[name](CONTENT) + b"some text after the end")


@pytest.mark.parametrize("outer", COMPRESS)
@pytest.mark.parametrize("inner", COMPRESS)
def test_streams_within_streams_are_read(
    tmp_path: Path, read: Callable[[bytes], bytes], outer: str, inner: str
) -> None:
    nested = COMPRESS[outer](COMPRESS[inner](CONTENT))
    found = read(nested)
    if {outer, inner} <= {"xz", "Zstandard"}:
        # Both may take the memory of the largest window.
        assert found == COMPRESS[inner](CONTENT)
    else:
        assert found == CONTENT


def test_no_more_than_three_layers_are_undone(read: Callable[[bytes], bytes]) -> None:
    twice = gzip.compress(gzip.compress(CONTENT))
    assert read(gzip.compress(twice)) == CONTENT
    assert read(gzip.compress(gzip.compress(twice))).startswith(b"\x1f\x8b")


def window(size_log: int) -> bytes:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: size_log})
    return compressor.compress(CONTENT) + compressor.flush()


def dictionary(size_bytes: int) -> bytes:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": size_bytes}]
    return lzma.compress(CONTENT, filters=filters)


@pytest.mark.parametrize("content", [window(27), dictionary(2**26), lzma.compress(CONTENT, preset=9)])
def test_usual_windows_are_read(read: Callable[[bytes], bytes], content: bytes) -> None:
    assert read(content) == CONTENT


@pytest.mark.parametrize("content", [window(28), dictionary(2**28)])
def test_larger_windows_are_refused(read: Callable[[bytes], bytes], content: bytes) -> None:
    with pytest.raises(UnsupportedFormat, match="window of more than 134217728 bytes"):
        read(content)


def test_many_small_streams_take_little_time(read: Callable[[bytes], bytes]) -> None:
    assert read(zstd.compress(b"x") * 50_000) == b"x" * 50_000
