"""What the process tells its parent: one object of JSON a line."""

import json
import os
import sys

# Libraries print to the standard output as they like, so the parent reads a copy of it, and they write elsewhere.
_LINES = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
sys.stdout = sys.stderr


def tell(**message: object) -> None:
    """Tells the parent something at once."""
    _LINES.write(json.dumps(message) + "\n")
    _LINES.flush()


def tell_progress(activity: str, share: float) -> None:
    """Tells the parent what is being done, and the share of the task that is done, 0…1."""
    tell(activity=activity, share=share)
