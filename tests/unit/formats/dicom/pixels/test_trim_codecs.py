"""The codecs that remain in container images."""

import shutil
import subprocess
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom import uid

TRIM = Path(__file__).parents[5] / "docker" / "trim_codecs.py"
DECODE = """
import sys
from inference_service.formats.dicom.pixels import encoded_frames

sys.stdout.buffer.write(encoded_frames.DECODERS[sys.argv[1]](sys.stdin.buffer.read()).tobytes())
"""
PIXELS = np.random.default_rng(0).integers(0, 4096, (32, 24), dtype=np.uint16)


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trimmed imagecodecs."""
    folder = tmp_path_factory.mktemp("packages")
    package = Path(imagecodecs.__file__).parent
    for part in (package, package.with_name("imagecodecs.libs")):
        shutil.copytree(part, folder / part.name)
    subprocess.run([sys.executable, "-B", TRIM], env={"PYTHONPATH": str(folder)}, check=True)
    return folder


@pytest.mark.parametrize(
    ("syntax", "packed"),
    [
        (uid.JPEGLosslessSV1, imagecodecs.ljpeg_encode(PIXELS, bitspersample=12)),
        (uid.JPEGLSLossless, imagecodecs.jpegls_encode(PIXELS)),
        (uid.JPEG2000Lossless, imagecodecs.jpeg2k_encode(PIXELS, codecformat="j2k", reversible=True)),
        (uid.HTJ2KLossless, imagecodecs.htj2k_encode(PIXELS, reversible=True)),
    ],
    ids=["jpeg", "jpeg-ls", "jpeg-2000", "htj2k"],
)
def test_trimmed_codecs_decode_every_supported_syntax(trimmed: Path, syntax: str, packed: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-c", DECODE, syntax],
        input=packed,
        env={"PYTHONPATH": str(trimmed)},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout == PIXELS.tobytes()


def test_most_codecs_are_removed(trimmed: Path) -> None:
    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*.so*"))

    whole = Path(imagecodecs.__file__).parent
    kept, had = (size(at / "imagecodecs") + size(at / "imagecodecs.libs") for at in (trimmed, whole.parent))
    assert 0 < kept < had / 5
