"""The transfer syntaxes of DICOM files (PS3.5 10) that can be decoded."""

import re

from pydicom import uid

from inference_service.core.errors import UnsupportedTransferSyntax

NATIVE = {
    uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRBigEndian,
}  # fmt: skip
"""Transfer syntaxes whose pixels are not encapsulated."""
JPEG = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1}
JPEG_LS = {uid.JPEGLSLossless, uid.JPEGLSNearLossless}
JPEG_2000 = {uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K}
"""JPEG 2000, and High-Throughput JPEG 2000."""
JPEG_XL_LOSSLESS = uid.UID("1.2.840.10008.1.2.4.110")
JPEG_XL_RECOMPRESSION = uid.UID("1.2.840.10008.1.2.4.111")
JPEG_XL_LOSSY = uid.UID("1.2.840.10008.1.2.4.112")
JPEG_XL = {JPEG_XL_LOSSLESS, JPEG_XL_RECOMPRESSION, JPEG_XL_LOSSY}
UNCOMPRESSED_FRAMES = uid.UID("1.2.840.10008.1.2.1.98")
DEFLATED_FRAMES = uid.UID("1.2.840.10008.1.2.8.1")
BYTE_FRAMES = {UNCOMPRESSED_FRAMES, DEFLATED_FRAMES}
"""Transfer syntaxes whose frames are encapsulated native pixels, plain or deflated (PS3.5 A.4.11 and A.4.13)."""
ALWAYS_LOSSY = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, JPEG_XL_RECOMPRESSION}
"""Transfer syntaxes that always lose information, whatever LossyImageCompression says."""
_DECODABLE = {*NATIVE, *BYTE_FRAMES, uid.RLELossless, *JPEG, *JPEG_LS, *JPEG_2000, *JPEG_XL}
_MAX_UID_CHARACTERS = 64
# Transfer syntaxes that pydicom has no names for: newer ones, and private ones of scanners and archives.
_SYNTAX_NAMES = {
    JPEG_XL_LOSSLESS: "JPEG XL Lossless",
    JPEG_XL_RECOMPRESSION: "JPEG XL JPEG Recompression",
    JPEG_XL_LOSSY: "JPEG XL",
    DEFLATED_FRAMES: "Deflated Image Frame Compression",
    "1.2.840.113619.5.2": "GE Implicit VR Big Endian (private)",
    "1.3.46.670589.33.1.4.1": "Philips CT Explicit VR Little Endian (private)",
}


def check_transfer_syntax(syntax: str) -> None:
    """Raises UnsupportedTransferSyntax, with the name of the transfer syntax, if there is no decoder for it."""
    if syntax not in _DECODABLE:
        raise UnsupportedTransferSyntax(
            f"there is no decoder for the transfer syntax {syntax_name(syntax)}: send the series in another one, such "
            "as Explicit VR Little Endian"
        )


def syntax_name(syntax: str) -> str:
    """Name of a transfer syntax; of an unknown one the UID, without characters that a UID does not have.

    >>> syntax_name("1.2.840.10008.1.2.4.110"), syntax_name("1.2.3 Doe")
    ('JPEG XL Lossless', '1.2.3????')
    """
    name = _SYNTAX_NAMES.get(syntax, uid.UID(syntax).name)
    if name == syntax:
        # An unknown UID may be any text, and identify a patient.
        return re.sub(r"[^0-9.]", "?", syntax)[:_MAX_UID_CHARACTERS]
    return name
