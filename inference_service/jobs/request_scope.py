"""Keeps a request within the buckets and prefixes that this deployment allows, before any object is touched.

A worker does so before it runs a job, and the HTTP gateway before it accepts a job or sends its input.
"""

from inference_service.contract.task_message import UPLOAD_PREFIX, ChannelReference, SegmentRequest
from inference_service.core.errors import BadRequest
from inference_service.core.settings import Settings


def confine(request: SegmentRequest, settings: Settings) -> SegmentRequest:
    """Checks the places that a request names, which the credentials alone may not restrict.

    Args:
        request: The job's request.
        settings: Allow buckets and prefixes.

    Returns:
        The request with its output prefix: OUTPUT_PREFIX_ROOT where it names none.

    Raises:
        BadRequest: It names a place outside of those that the settings allow.
    """
    for scan in request.input.scans:
        _confine_scan(scan, "request.input.channels.*" if request.input.channels else "request.input", settings)
    root = settings.output_prefix_root
    if root is None:
        return request
    prefix = request.output.prefix or root
    if _folder(prefix) != _folder(root) and not _is_below(prefix, root):
        raise BadRequest(f"request.output.prefix: expected {_folder(root)} or a prefix below it")
    return request.model_copy(update={"output": request.output.model_copy(update={"prefix": prefix})})


def _confine_scan(scan: ChannelReference, location: str, settings: Settings) -> None:
    """Checks the place of one scan; `location` names it in the request, without text of the sender."""
    buckets = {settings.minio_input_bucket, *settings.input_buckets}
    if scan.bucket is not None and scan.bucket not in buckets:
        raise BadRequest(f"{location}.bucket: expected {' or '.join(sorted(buckets))}")
    prefixes = settings.input_prefixes
    if prefixes and not any(_is_below(scan.key, prefix) for prefix in prefixes):
        raise BadRequest(f"{location}.key: expected a key below {' or '.join(map(_folder, prefixes))}")
    # The random keys keep uploads apart; all of them as one input would go round that.
    if scan.key == UPLOAD_PREFIX:
        raise BadRequest(f"{location}.key: expected one upload, got the prefix of all uploads, {UPLOAD_PREFIX}")


def _is_below(key: str, prefix: str) -> bool:
    return key.startswith(_folder(prefix)) and key != _folder(prefix)


def _folder(prefix: str) -> str:
    return prefix.removesuffix("/") + "/"
