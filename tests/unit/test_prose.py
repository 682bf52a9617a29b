"""Every rule for the prose of the docs fails on a page that breaks it, and passes on one that keeps it."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
STYLE = REPOSITORY / "docs/style"
VOCABULARY = [line.split("->") for line in (STYLE / "vocabulary.txt").read_text(encoding="utf-8").splitlines()]


def prose_problems(page: Path, text: str) -> list[str]:
    page.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, STYLE / "prose.py", page], capture_output=True, text=True, encoding="utf-8", check=False
    )
    assert done.returncode == bool(done.stdout), done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "text",
    [
        "All files but for the last.",
        "The worker looks after jobs\nwithout a lease.",
        "What ends a job is its error.",
        "The log says why it failed.",
        "The device sums.",
        "Nobody holds the job.",
        "The worker is told to stop.",
        "A worker gives back its jobs.",
        "one " * 41 + "sentence.",
    ],
)
def test_a_page_that_breaks_a_rule_fails(tmp_path: Path, text: str) -> None:
    (problem,) = prose_problems(tmp_path / "page.md", f"# Title\n\n{text}\n")
    assert problem.startswith(f"{tmp_path / 'page.md'}:3: ")


@pytest.mark.parametrize(
    "text",
    [
        "What ends a job?",
        "```sh\ngrep 'says why'\n```",
        "The column `sums`.",
        "one " * 39 + "sentence.",
        "- " + "one " * 30 + "\n- " + "two " * 30,
        "| " + "one " * 30 + "| " + "two " * 30 + "|",
    ],
)
def test_a_page_that_keeps_the_rules_passes(tmp_path: Path, text: str) -> None:
    assert prose_problems(tmp_path / "page.md", f"# Title\n\n{text}\n") == []


def test_each_banned_word_is_found_and_its_replacement_is_not(tmp_path: Path) -> None:
    vocabulary = STYLE / "vocabulary.txt"
    page = tmp_path / "page.md"
    command = [sys.executable, "-m", "codespell_lib", "--dictionary", str(vocabulary), str(page)]
    page.write_text("\n".join(word for word, _ in VOCABULARY), encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (len(done.stdout.splitlines()), done.returncode != 0) == (len(VOCABULARY), True)
    page.write_text("\n".join(better for _, better in VOCABULARY), encoding="utf-8")
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_the_glossary_is_in_order_and_defines_each_term_once() -> None:
    lines = (REPOSITORY / "docs/glossary.md").read_text(encoding="utf-8").splitlines()
    terms = [line.split("**")[1].lower() for line in lines if line.startswith("**")]
    assert terms == sorted(set(terms))
