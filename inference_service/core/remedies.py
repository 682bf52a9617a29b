"""The remedy for each error code, in a sentence for the person who sent the scan."""

from collections.abc import Mapping
from types import MappingProxyType

from inference_service.core.errors import ErrorCode

REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        ErrorCode.BAD_REQUEST: "Correct the request as the message says, and submit it again.",
        ErrorCode.INPUT_NOT_FOUND: "Check the bucket and the key, or upload the scan again.",
        ErrorCode.INPUT_TOO_LARGE: "Send one series alone, or crop the scan; the operator can raise MAX_INPUT_BYTES "
        "and MAX_VOXELS.",
        ErrorCode.INPUT_CORRUPT: "Export the scan again, and send the new files.",
        ErrorCode.UNSUPPORTED_FORMAT: "Send the scan as DICOM, NIfTI, NRRD or MetaImage, or as a zip or tar of such "
        "files.",
        ErrorCode.NOT_A_VOLUME: "Send one volume in 3-D: no localizer, no time series and no colour images.",
        ErrorCode.UNSUPPORTED_TRANSFER_SYNTAX: "Export the series again without compression, in Explicit VR Little "
        "Endian.",
        ErrorCode.MIXED_SERIES: "Send one series alone, or name its SeriesInstanceUID in input.series.",
        ErrorCode.MISSING_SLICES: "Send all slices of the series, or let gaps of up to 10 mm be interpolated: tolerate "
        "uneven_spacing.",
        ErrorCode.INCONSISTENT_GEOMETRY: "Send one acquisition of one series as the scanner made it, or correct the "
        "field of the header that the message names.",
        ErrorCode.GANTRY_TILT: "Send a reconstruction without tilt, or let the slices be aligned: tolerate "
        "gantry_tilt.",
        ErrorCode.MODALITY_MISMATCH: "Choose a model for the modality of the scan; if the header is wrong, switch "
        "modality_check off.",
        ErrorCode.MODEL_NOT_FOUND: "Choose one of the listed models, or ask the operator to install this one.",
        ErrorCode.MODEL_INVALID: "Choose another model or version; the operator must replace this one.",
        ErrorCode.OUT_OF_MEMORY: "Crop the scan, or choose a model with a coarser spacing; the operator can give the "
        "workers more memory.",
        ErrorCode.TIME_LIMIT: "Crop the scan, or choose a faster model; the operator can raise TIME_LIMIT_S.",
        ErrorCode.WORKER_LOST: "Submit the scan again later; if it fails again, tell the operator, who finds the "
        "reason in the logs of the workers.",
        ErrorCode.CANCELLED: "Submit the scan again if its mask is still needed.",
        ErrorCode.STORAGE_UNAVAILABLE: "Try again later; if it fails again, the operator must check the object storage "
        "and the disks of the workers.",
        ErrorCode.DATABASE_UNAVAILABLE: "Try again later; if it fails again, the operator must check Postgres.",
        ErrorCode.QUEUE_UNAVAILABLE: "Try again later; if it fails again, the operator must check Redis.",
        ErrorCode.EMBEDDED_SERVER_ERROR: "Correct what the message names, and start the command again.",
        ErrorCode.RESULT_DAMAGED: "Submit the scan again; the operator can find all damaged results with "
        "inference-service audit.",
        ErrorCode.INTERNAL_ERROR: "Submit the scan again once; if it fails again, tell the operator, who finds the "
        "reason in the log.",
    }
)


def remedy(code: str | None) -> str | None:
    """Returns the remedy for an error; None where there is no error, or one of a later version."""
    return None if code is None else REMEDIES.get(code)
