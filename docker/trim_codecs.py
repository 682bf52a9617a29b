"""Removes the libraries of imagecodecs that the service never loads, nine tenths of its size; run in image builds."""

from pathlib import Path

import imagecodecs

import inference_service.formats.dicom.pixels.decoder  # noqa: F401 - loads the codecs that the service uses

PACKAGE = Path(imagecodecs.__file__).parent
loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()}
for folder in (PACKAGE, PACKAGE.with_name("imagecodecs.libs")):
    for library in folder.glob("*.so*"):
        if str(library) not in loaded:
            library.unlink()
