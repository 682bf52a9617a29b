"""`make fuzz`: fuzzes each target in turn, on one core, and prints what was run and found.

Inputs that reached new code are kept in `.fuzz/corpus/`, so that the next run goes on from them. An input that was a
finding is in `.fuzz/findings/`; `--replay` runs it again, without atheris. The exit status is 0 if there is no finding.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fuzz.target import MAX_CPU_S, Target, check
from fuzz.targets import TARGETS

SCREEN = Console(width=120, highlight=False)
FOLDER = Path(".fuzz")
# The bounds in fuzz.target are exact; these only end a process that no longer comes back.
_HANG_S = 10 * int(MAX_CPU_S)
_MAX_RESIDENT_MB = 3000
_STATISTICS = re.compile(r"cov: (?P<edges>\d+) ft: \d+ corp: (?P<kept>\d+)")
_EXECUTIONS = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzzes and prints; returns the exit status."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=120, help="time for each target (default: %(default)s)")
    parser.add_argument("--only", choices=sorted(TARGETS), nargs="+", default=list(TARGETS), help="only these targets")
    parser.add_argument("--replay", type=Path, help="a file in .fuzz/findings/, whose name starts with its target's")
    options = parser.parse_args(arguments)
    if options.replay:
        target = TARGETS[options.replay.name.split("-")[0]]
        target.prepare()
        accepted = check(target, options.replay.read_bytes())
        SCREEN.print("accepted" if accepted else "refused")
        return 0
    os.nice(19)
    findings = 0
    for name in options.only:
        findings += fuzz(TARGETS[name], seconds=options.seconds)
    SCREEN.print(f"findings: {findings}")
    return int(findings > 0)


def fuzz(target: Target, *, seconds: int) -> bool:
    """Fuzzes one target and prints the result; returns True if there was a finding."""
    corpus = FOLDER / "corpus" / target.name
    seeds = FOLDER / "seeds" / target.name
    findings = FOLDER / "findings"
    for folder in (corpus, seeds, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (seeds / str(number)).write_bytes(seed)
    before = set(findings.iterdir())
    command = [
        *(sys.executable, "-m", "fuzz.fuzzer", target.name),
        f"-max_total_time={seconds}",
        f"-max_len={target.max_input_bytes}",
        f"-timeout={_HANG_S}",
        f"-rss_limit_mb={_MAX_RESIDENT_MB}",
        f"-artifact_prefix={findings}/{target.name}-",
        "-print_final_stats=1",
        *(str(corpus), str(seeds)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    progress = list(_STATISTICS.finditer(done.stderr))
    executions = _EXECUTIONS.search(done.stderr)
    if done.returncode or not progress or executions is None:
        found = ", ".join(str(path) for path in set(findings.iterdir()) - before) or "no input kept"
        SCREEN.print(f"{target.name}: FINDING, status {done.returncode}: {found}")
        SCREEN.print(*(done.stderr + done.stdout).splitlines()[-20:], sep="\n", markup=False)
        return True
    last = progress[-1]
    SCREEN.print(f"{target.name}: {int(executions[1]):,} executions, {last['edges']} edges, {last['kept']} inputs kept")
    return False


if __name__ == "__main__":
    sys.exit(main())
