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
ALWAYS_LOSSY = {uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless}
"""Transfer syntaxes that always lose information, whatever LossyImageCompression says."""
_DECODABLE = {*NATIVE, uid.RLELossless, *JPEG, *JPEG_LS, *JPEG_2000}
_MAX_UID_CHARACTERS = 64
# Transfer syntaxes that pydicom has no names for: newer ones, and private ones of scanners and archives.
_SYNTAX_NAMES = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
    "1.2.840.10008.1.2.8.1": "Deflated Image Frame Compression",
    "1.2.840.113619.5.2": "GE Implicit VR Big Endian (private)",
    "1.3.46.670589.33.1.4.1": "Philips CT Explicit VR Little Endian (private)",
}


def check_transfer_syntax(syntax: str) -> None:
    """Raises UnsupportedTransferSyntax, with the name of the transfer syntax, if there is no decoder for it."""
    if syntax in _DECODABLE:
        return
    name = _SYNTAX_NAMES.get(syntax, uid.UID(syntax).name)
    if name == syntax:
        # An unknown UID may be any text, and identify a patient.
        name = re.sub(r"[^0-9.]", "?", syntax)[:_MAX_UID_CHARACTERS]
    raise UnsupportedTransferSyntax(
        f"there is no decoder for the transfer syntax {name}: send the series in another one, such as Explicit VR "
        "Little Endian"
    )
