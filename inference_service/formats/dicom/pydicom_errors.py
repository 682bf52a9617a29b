"""pydicom's log, warnings and errors, which quote values of a file: silenced, or mapped to errors that quote none."""

import errno
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pydicom

from inference_service.core.errors import InputCorrupt, ServiceError, redacted

# Its messages quote the values that they are about, which may identify a patient.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

# OSErrors that a file's content causes: pydicom raises its own without a number, and a seek to an impossible position
# gives EINVAL.
_ERRNOS_OF_CONTENT = {None, errno.EINVAL}


@contextmanager
def map_pydicom_errors(message: str = "a DICOM file is truncated or damaged") -> Iterator[None]:
    """Maps the errors that pydicom and its decoders raise.

    A damaged file leads them into any exception, from AttributeError to ZeroDivisionError: this is the one place that
    catches them all. Their messages quote values, so they are redacted.

    Args:
        message: The sentence for the user.

    Raises:
        InputCorrupt: For every exception but our own errors, lack of memory and faults of the file system.
    """
    try:
        yield
    except (ServiceError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in _ERRNOS_OF_CONTENT:
            raise
        raise InputCorrupt(message) from redacted(error)


@contextmanager
def suppress_warnings() -> Iterator[None]:
    """Suppresses warnings about invalid values. Use it in one thread at a time: filters are global to the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
