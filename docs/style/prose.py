"""Checks the prose of Markdown pages: phrases that the docs must not use, and sentences that are too long.

Usage: python docs/style/prose.py PAGE...

Code is skipped. Single words are in vocabulary.txt, which codespell checks.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_SENTENCE_WORDS = 40
_PHRASES = (
    (r"\bin order to\b", "write 'to'"),
    (r"\bdue to the fact that\b", "write 'because'"),
    (r"\bbut for\b", "write 'except'"),
    (r"\bnot un[a-z]+ed\b", "a double negation: state the fact"),
    (r"\bsays? (of|what|how|why|which|where)\b", "write 'states', or name the fact"),
    (r"\blook(s|ed|ing)? (after|at|for)\b", "write 'read', 'check', 'search' or 'recover'"),
    (r"(?m:^|[.;:] )(?-i:What) [^?.]+[.;]", "begin with a noun, not with a 'what' clause"),
    (r"\b(from|over) runs\b", "write 'run-length encoding'"),
    (r"\b(the )?sums\b", "write 'aggregator', or 'adds up'"),
    (r"\b(ours|theirs)\b", "name the owner"),
    (r"\b(nobody|anybody|somebody)\b", "name the person or the program, or write 'no one'"),
    (r"\bas people do\b", "state the case"),
    (r"\bjudge[sd]?\b", "write 'check', 'classify' or 'decide'"),
    (r"\btold\b", "write 'receives' or 'is informed'"),
    (r"\bg(ive|ives|iven|ave) back\b", "write 'return' or 'release'"),
    (r"\b(a|another) look\b", "write 'check', or name the query"),
)
_PATTERNS = tuple((re.compile(pattern, re.IGNORECASE), advice) for pattern, advice in _PHRASES)
_CODE = re.compile(r"^```.*?^```|`[^`\n]*`", flags=re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\([^)]*\)")
# A paragraph, a list item, a table cell or a heading ends a sentence, as do full stops, colons and semicolons.
_BLOCK_END = re.compile(r"\n\s*\n|\n(?=\s*(?:[-#|>]|\d+\.)\s)|\|")
_SENTENCE_END = re.compile(r"(?<=[.!?:;])\s+")
_WORD = re.compile(r"\w[\w'’.-]*")


def problems(text: str) -> Iterator[tuple[int, str]]:
    """Line number and description of each problem of a page."""
    prose = _CODE.sub(_blank, text)
    prose = _LINK.sub(_blank, prose)
    for pattern, advice in _PATTERNS:
        for match in pattern.finditer(prose):
            yield _line(prose, match.start()), f"'{' '.join(match[0].split())}': {advice}"
    for start, sentence in _sentences(prose):
        words = len(_WORD.findall(sentence))
        if words > MAX_SENTENCE_WORDS:
            yield _line(prose, start), f"a sentence of {words} words; at most {MAX_SENTENCE_WORDS}"


def _blank(match: re.Match[str]) -> str:
    """Keeps line breaks, so that line numbers stay right, and one word in place of inline code."""
    lines = match[0].count("\n")
    return "\n" * lines if lines else "x" * len(match[0])


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    for start, block in _pieces(text, 0, _BLOCK_END):
        yield from _pieces(block, start, _SENTENCE_END)


def _pieces(text: str, offset: int, end: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    start = 0
    for match in end.finditer(text):
        yield offset + start, text[start : match.start()]
        start = match.end()
    yield offset + start, text[start:]


def main(pages: list[str]) -> int:
    """Prints the problems of all pages and returns the exit status."""
    found = [(page, *problem) for page in pages for problem in problems(Path(page).read_text(encoding="utf-8"))]
    for page, line, problem in found:
        sys.stdout.write(f"{page}:{line}: {problem}\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
