"""The process of one side: a task as JSON in its argument, what it measured as JSON on the last line of its output."""

import importlib
import sys
from typing import Protocol, cast

from pydantic import TypeAdapter

from benchmarks.measurement import Run, Task

# Begins the line that is the result: libraries print what they like.
RESULT_MARK = "benchmark-side "


class _SideModule(Protocol):
    def run(self, task: Task) -> Run: ...


def main() -> None:
    """Runs the side that the argument names, with no other side's libraries in the process."""
    task = TypeAdapter(Task).validate_json(sys.argv[1])
    side = cast(_SideModule, importlib.import_module(f"benchmarks.sides.{task.side.program}"))
    result = TypeAdapter(Run).dump_json(side.run(task)).decode()
    sys.stdout.write(f"\n{RESULT_MARK}{result}\n")


if __name__ == "__main__":
    main()
