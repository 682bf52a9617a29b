"""MkDocs hook: adds the repository's pages outside docs/ to the site, and points links to where the pages then are.

A link to a file that is no page of the site, such as a source file, becomes plain text.
"""

import posixpath
import re
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_REPOSITORY = Path(__file__).parents[1]
_DOCS = "docs/"
# The README is the home page. Other pages keep their path in the repository.
_OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "benchmarks/README.md": "benchmarks/README.md",
}
_MODEL_PAGES = ("models/*/*/README.md", "training/*/README.md")
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
_CODE_BLOCK = re.compile(r"(^```.*?^```$)", flags=re.MULTILINE | re.DOTALL)


@cache
def _outside() -> dict[str, str]:
    """Path in the repository to path in the site, for each page outside docs/."""
    found = (path for pattern in _MODEL_PAGES for path in _REPOSITORY.glob(pattern))
    models = sorted(path.relative_to(_REPOSITORY).as_posix() for path in found)
    return _OUTSIDE | {path: path for path in models}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages outside docs/."""
    for path, uri in _outside().items():
        files.append(File.generated(config, uri, abs_src_path=str(_REPOSITORY / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the relative links of a page."""
    uri = page.file.src_uri
    sources = {site: path for path, site in _outside().items()}
    source = sources.get(uri, _DOCS + uri)

    def rewrite(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        site = _outside().get(path, path.removeprefix(_DOCS) if path.startswith(_DOCS) else None)
        if site is not None:
            return f"{image}[{text}]({posixpath.relpath(site, posixpath.dirname(uri) or '.')}{anchor or ''})"
        # A missing target stays as it is, so that a strict build reports it.
        return text if (_REPOSITORY / path).exists() else match[0]

    parts = _CODE_BLOCK.split(markdown)
    parts[::2] = [_LINK.sub(rewrite, part) for part in parts[::2]]
    return "".join(parts)
