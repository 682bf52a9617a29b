"""The messages of the process to its parent: one object of JSON a line."""

import json
import os
import sys
from typing import TextIO


class _Parent:
    """The parent, if there is one: without, nothing is told."""

    lines: TextIO | None = None


def keep_output() -> None:
    """Keeps the standard output for the parent. Libraries print there as they like: their lines go to the errors."""
    _Parent.lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr


def tell(**message: object) -> None:
    """Tells the parent something at once."""
    if _Parent.lines is not None:
        _Parent.lines.write(json.dumps(message) + "\n")
        _Parent.lines.flush()


def tell_progress(activity: str, share: float) -> None:
    """Tells the parent what is being done, and the share of the task that is done, 0…1."""
    tell(activity=activity, share=share)
