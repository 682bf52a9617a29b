"""What a source leaves open that comes without a description: a draft of the short config that it needs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from inference_service.core.scratch_space import scratch_folder
from inference_service.core.settings import Settings
from inference_service.importers.isolation import Isolation
from inference_service.importers.onnx_source import OnnxSource
from inference_service.importers.registry import find_importer
from inference_service.importers.short_config import Describes, Signature
from inference_service.importers.source_files import is_archive
from inference_service.importers.torchscript_source import TorchScriptSource


class OpenSource:
    """A source whose network has no description.

    Args:
        importer: Its importer.
        source: The source.
        isolation: Where its file is read.
    """

    def __init__(self, importer: Describes, source: Path, isolation: Isolation) -> None:
        self._importer = importer
        self._source = source
        self._isolation = isolation

    def describe(self, window: Sequence[int | None] | None = None) -> Signature:
        """Returns what the source says; more, once the size of a window is known."""
        return self._importer.describe(self._source, self._isolation, window)


@contextmanager
def undescribed(source: Path, settings: Settings, time_limit_s: float) -> Iterator[OpenSource | None]:
    """Opens a source whose network has no description; None for one that describes itself, or is an archive.

    Args:
        source: The source.
        settings: The folder for temporary files.
        time_limit_s: The most seconds that a look into its file may take.

    Raises:
        UnsupportedFormat: No importer recognises it.
    """
    if not source.exists() or is_archive(source):
        yield None
        return
    importer, found = find_importer(source)
    with scratch_folder(settings.usable_work_path) as scratch:
        described = not isinstance(importer, TorchScriptSource | OnnxSource)
        yield None if described else OpenSource(cast("Describes", importer), found, Isolation(scratch, time_limit_s))
