"""The kinds of sources, told apart by content: the first importer that recognises a source reads it."""

from pathlib import Path

from inference_service.core.errors import InputNotFound, UnsupportedFormat
from inference_service.importers.hints import hint
from inference_service.importers.monai.bundle import MonaiBundle
from inference_service.importers.nnunet.model import NnunetModel
from inference_service.importers.onnx_source import OnnxSource
from inference_service.importers.source_files import only_folders
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
NNUNET_TASK = "nnunet"
"""The task that takes a data set with the name of one of TotalSegmentator's for a model of nnU-Net itself."""


def find_importer(source: Path, *, task: str | None = None) -> tuple[Importer, Path]:
    """Finds the importer of a source.

    Args:
        source: The source.
        task: The task that is asked for; NNUNET_TASK passes TotalSegmentator over.

    Returns:
        The importer, and what it reads: the source, or the only folder in it.

    Raises:
        UnsupportedFormat: No importer recognises it.
        InputNotFound: A folder or file of it must not be read.
    """
    try:
        for folder in only_folders(source):
            for importer in IMPORTERS:
                passed_over = task == NNUNET_TASK and isinstance(importer, TotalSegmentatorModel)
                if not passed_over and importer.recognises(folder):
                    return importer, folder
        kinds = ", ".join(importer.kind for importer in IMPORTERS)
        raise UnsupportedFormat(f"the source is none of these: {kinds}{hint(source, IMPORTERS)}")
    except PermissionError as error:
        raise InputNotFound(f"{Path(str(error.filename)).name} cannot be read: its permissions forbid it") from error
