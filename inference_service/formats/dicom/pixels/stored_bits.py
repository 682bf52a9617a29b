"""Takes the values of pixels from their stored bits, by BitsStored, HighBit and PixelRepresentation. Pure numerics."""

import numpy as np
from numpy.typing import NDArray

from inference_service.core.errors import InputCorrupt
from inference_service.formats.dicom.instance import PixelDescription


def take_values(words: NDArray[np.integer], bits: int, description: PixelDescription) -> NDArray[np.integer]:
    """Clears the bits above each value, and extends its sign (PS3.5 8.1.1).

    The bits above may hold overlays. Padding values stay as they are: the stored bits need not be able to hold them.

    Args:
        words: The stored bits, in integers whose own sign does not matter: a codestream may contradict
            PixelRepresentation, and JPEG has no sign.
        bits: Number of bits that are stored in the file.
        description: The header.

    Raises:
        InputCorrupt: HighBit contradicts BitsStored, and bits that would be cleared are in use.
    """
    value_bits = min(bits, description.bits_stored)
    has_sign = np.issubdtype(words.dtype, np.signedinteger)
    if value_bits == bits and has_sign == description.signed:
        return words
    words = _extend(words, bits, signed=description.signed)
    values = _extend(words, value_bits, signed=description.signed)
    if description.padding_range is not None:
        lowest, highest = description.padding_range
        is_padding = (words >= lowest) & (words <= highest)
        values[is_padding] = words[is_padding]
    if description.high_bit != description.bits_stored - 1:
        _check_place(words, values, description)
    return values


def _extend(words: NDArray[np.integer], bits: int, *, signed: bool) -> NDArray[np.integer]:
    """The lowest bits of integers, as signed or unsigned numbers of the same size."""
    dtype = np.dtype(f"{'i' if signed else 'u'}{words.dtype.itemsize}")
    unused_bits = max(0, 8 * dtype.itemsize - bits)
    native = words.astype(words.dtype.newbyteorder("="), copy=False).view(dtype)
    return (native << unused_bits) >> unused_bits


def _check_place(words: NDArray[np.integer], values: NDArray[np.integer], description: PixelDescription) -> None:
    """Refuses pixels that may hold their values up to HighBit, where that is not the highest of the lowest BitsStored.

    Old editions of the standard allow it. Most headers of this kind are wrong, and the values are in the lowest bits.
    """
    low_bits = 2 ** (description.high_bit + 1 - description.bits_stored) - 1
    fits = (words == values) | (words == values & (2**description.bits_stored - 1))
    if not fits.all() or (words.any() and not (words & low_bits).any()):
        raise InputCorrupt(
            f"a DICOM file's HighBit is {description.high_bit} with a BitsStored of {description.bits_stored}: "
            f"expected {description.bits_stored - 1}, and its pixels do not show which bits hold the value"
        )
