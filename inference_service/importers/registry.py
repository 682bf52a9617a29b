"""The kinds of sources, told apart by content: the first importer that recognises a source reads it."""

from pathlib import Path

from inference_service.core.errors import UnsupportedFormat
from inference_service.importers.monai.bundle import MonaiBundle
from inference_service.importers.nnunet.model import NnunetModel
from inference_service.importers.onnx_source import OnnxSource
from inference_service.importers.sources import Importer
from inference_service.importers.torchscript_source import TorchScriptSource
from inference_service.importers.totalsegmentator.model import TotalSegmentatorModel

IMPORTERS: tuple[Importer, ...] = (
    MonaiBundle(),
    TotalSegmentatorModel(),
    NnunetModel(),
    TorchScriptSource(),
    OnnxSource(),
)
"""In the order in which they are asked; one that looks for more comes first."""


def find_importer(source: Path) -> Importer:
    """Finds the importer of a source.

    Raises:
        UnsupportedFormat: No importer recognises it.
    """
    for importer in IMPORTERS:
        if importer.recognises(source):
            return importer
    kinds = ", ".join(importer.kind for importer in IMPORTERS)
    raise UnsupportedFormat(f"the source is none of these: {kinds}")
