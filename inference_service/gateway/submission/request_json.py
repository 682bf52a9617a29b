"""Requests as JSON: whole ones, and those of forms, whose scans get their places when the files are stored."""

import json
from collections.abc import Mapping
from typing import Any

from inference_service.contract.task_message import UPLOAD_PREFIX, SegmentRequest, parse_request
from inference_service.core.errors import BadRequest

# The key of a file that is not stored yet, in a request that is only validated.
_PLACEHOLDER = f"{UPLOAD_PREFIX}scan"
_PLACE = ("bucket", "key")


def json_object(content: bytes, subject: str) -> dict[str, Any]:
    """Reads an object of JSON in UTF-8.

    Raises:
        BadRequest: It is none; the message names the subject.
    """
    try:
        found = json.loads(content.decode())
    except (ValueError, RecursionError):
        raise BadRequest(f"{subject} is not JSON in UTF-8") from None
    if not isinstance(found, dict):
        raise BadRequest(f"{subject} is no JSON object")
    return found


class FormRequest:
    """The request of a form, which names no places.

    Args:
        content: The part `request`.

    Raises:
        BadRequest: It does not follow the contract.
    """

    def __init__(self, content: bytes) -> None:
        self._fields = json_object(content, "the part request")
        self._input: dict[str, Any] = self._fields.get("input", {})
        if not isinstance(self._input, dict):
            raise BadRequest("request.input: expected an object")
        self._channels: dict[str, Any] = self._input.get("channels", {})
        if not isinstance(self._channels, dict) or not all(isinstance(each, dict) for each in self._channels.values()):
            raise BadRequest("request.input.channels: expected an object of objects")
        if any(place in each for each in (self._input, *self._channels.values()) for place in _PLACE):
            raise BadRequest("request.input: a form contains its files, and names no bucket and no key")
        self.unplaced = self.placed(dict.fromkeys(self._channels, _PLACEHOLDER) or {None: _PLACEHOLDER})
        """The request with a key that no file has, by which all else of it can be compared."""

    def placed(self, places: Mapping[str | None, str]) -> SegmentRequest:
        """Returns the request with the places of its files.

        Args:
            places: The key of each channel's scan, or of the only scan under None.

        Raises:
            BadRequest: It names a channel without a file, or does not follow the contract.
        """
        if None in places:
            return parse_request({**self._fields, "input": {**self._input, "key": places[None]}})
        if not self._channels.keys() <= places.keys():
            raise BadRequest("request.input.channels: the form has no file for one of the channels")
        channels = {name: {**self._channels.get(str(name), {}), "key": key} for name, key in places.items()}
        return parse_request({**self._fields, "input": {**self._input, "channels": channels}})
