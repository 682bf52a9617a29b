"""The process of one side. Its argument is a task as JSON; the last line of its output is its measurement as JSON."""

import importlib
import sys
from typing import Protocol, cast

from pydantic import TypeAdapter

from benchmarks.measurement import Run, Task

# Marks the line of the result, as libraries print lines of their own.
RESULT_MARK = "benchmark-side "


class _SideModule(Protocol):
    def run(self, task: Task) -> Run: ...


def main() -> None:
    """Runs the side of the task, without other sides' libraries in the process."""
    task = TypeAdapter(Task).validate_json(sys.argv[1])
    side = cast(_SideModule, importlib.import_module(f"benchmarks.sides.{task.side.program}"))
    result = TypeAdapter(Run).dump_json(side.run(task)).decode()
    sys.stdout.write(f"\n{RESULT_MARK}{result}\n")


if __name__ == "__main__":
    main()
