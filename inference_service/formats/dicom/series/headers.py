"""Reads the headers of an input's files, and sorts them into images, unusable ones and other files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from inference_service.formats.dicom.file_check import looks_like_dicom, may_be_damaged
from inference_service.formats.dicom.header import read_instance
from inference_service.formats.dicom.instance import ExclusionReason, Instance, UnusableInstance
from inference_service.formats.read_limits import ReadLimits


@dataclass(frozen=True)
class Headers:
    """The headers of an input's files.

    Attributes:
        instances: Image instances.
        unusable: Image instances with an invalid header.
        excluded: Number of the other files, by reason.
    """

    instances: list[Instance]
    unusable: list[UnusableInstance]
    excluded: Counter[ExclusionReason]


def read_headers(files: Sequence[Path], limits: ReadLimits) -> Headers:
    """Reads the header of each file; the limit on bytes applies to the inflated size of all deflated files together."""
    headers = Headers([], [], Counter())
    remaining_bytes = limits.max_bytes
    unrecognised = []
    for path in files:
        if not looks_like_dicom(path):
            unrecognised.append(path)
            continue
        found = read_instance(path, max_bytes=remaining_bytes, require_memory=limits.require_memory)
        if isinstance(found, Instance):
            headers.instances.append(found)
            remaining_bytes -= found.inflated_bytes
        elif isinstance(found, UnusableInstance):
            headers.unusable.append(found)
        else:
            headers.excluded[found] += 1
    damaged = sum(map(may_be_damaged, unrecognised)) if headers.instances else 0
    headers.excluded[ExclusionReason.UNREADABLE] += damaged
    headers.excluded[ExclusionReason.NOT_DICOM] += len(unrecognised) - damaged
    return _without_damaged_copies(headers)


def _without_damaged_copies(headers: Headers) -> Headers:
    """Leaves out files with an invalid header if another one has the same SOPInstanceUID and is intact."""
    intact = {(each.series_uid, each.sop_instance_uid) for each in headers.instances if each.sop_instance_uid}
    unusable = [each for each in headers.unusable if (each.series_uid, each.sop_instance_uid) not in intact]
    copies = Counter({ExclusionReason.DAMAGED_COPY: len(headers.unusable) - len(unusable)})
    return replace(headers, unusable=unusable, excluded=+(headers.excluded + copies))
