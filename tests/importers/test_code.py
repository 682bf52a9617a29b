"""Bundles whose network is Python of their own, which runs only if that is allowed, and within limits."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from importers.networks import CONFIG, write_bundle

from inference_service.core.errors import ModelInvalid
from inference_service.importers.model_import import Imported
from inference_service.importers.sandbox import find_limits

Import = Callable[..., Imported]

NETWORK = """
import os, socket
import torch
from scripts.parts.block import Block

{first}

class Net(torch.nn.Module):
    def __init__(self, out_channels, in_channels=1):
        super().__init__()
        self.block = Block(in_channels, 4)
        self.last = torch.nn.Conv3d(4, out_channels, 1)

    def forward(self, image):
        return self.last(self.block(image))
"""
BLOCK = """
import torch

class Block(torch.nn.Sequential):
    def __init__(self, inputs, outputs):
        super().__init__(torch.nn.Conv3d(inputs, outputs, 3, padding=1), torch.nn.ReLU())
"""


def write_own_network(folder: Path, *, first: str = "", target: str = "scripts.networks.Net", **changes: Any) -> Path:
    """Writes a bundle with a network of its own, whose module begins with some lines."""
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.ReLU())
    network = torch.nn.ModuleDict({"block": block, "last": torch.nn.Conv3d(4, 2, 1)})
    config = CONFIG | {"network_def": {"_target_": target, "out_channels": 2}} | changes
    write_bundle(folder, {"model": network.state_dict()}, config)
    (folder / "scripts" / "parts").mkdir(parents=True)
    (folder / "scripts" / "networks.py").write_text(NETWORK.format(first=first))
    (folder / "scripts" / "parts" / "block.py").write_text(BLOCK)
    return folder


def test_a_network_of_the_bundles_own_is_built_where_that_is_allowed(
    run_import: Import, tmp_path: Path, small_scan: Callable[..., Path]
) -> None:
    proof = tmp_path / "ran"
    refused = write_own_network(tmp_path / "refused", first=f"open({str(proof)!r}, 'w')")
    with pytest.raises(
        ModelInvalid, match=r"line \d+, network_def: Net: scripts\.networks\.Net is Python.*--allow-code"
    ):
        run_import(refused)
    assert not proof.exists()
    source = write_own_network(tmp_path / "bundle", imports=["$from scripts import networks"], target="networks.Net")
    before = sorted(source.rglob("*"))
    imported = run_import(source, allow_code=True, compare=(small_scan((40, 44, 50)),))
    assert sorted(source.rglob("*")) == before
    assert imported.comparison is not None
    assert imported.comparison.agreement >= 0.9995
    record = json.loads((imported.folder / "import.json").read_text())
    assert record["code"]["run"] == ["networks.Net"]
    assert "`networks.Net` built the network" in (imported.folder / "README.md").read_text()


def test_other_python_of_the_bundle_stays_refused(run_import: Import, tmp_path: Path) -> None:
    steps = [*CONFIG["preprocessing"]["transforms"], {"_target_": "scripts.networks.Scale", "keys": "image"}]
    preprocessing = {"_target_": "Compose", "transforms": steps}
    source = write_own_network(tmp_path / "bundle", preprocessing=preprocessing)
    with pytest.raises(ModelInvalid, match=r"Scale: scripts\.networks\.Scale is Python"):
        run_import(source, allow_code=True)


def test_code_that_fails_is_refused_by_name(run_import: Import, tmp_path: Path) -> None:
    source = write_own_network(tmp_path / "bundle", first="import no_such_package")
    with pytest.raises(ModelInvalid, match=r"scripts\.networks\.Net needs the package no_such_package"):
        run_import(source, allow_code=True)
    other = write_own_network(tmp_path / "other", target="scripts.elsewhere.Net")
    with pytest.raises(ModelInvalid, match=r"the bundle has no module scripts\.elsewhere"):
        run_import(other, allow_code=True)


def test_code_writes_to_its_own_folders_alone(run_import: Import, tmp_path: Path) -> None:
    if not find_limits().writing:
        pytest.skip("the kernel has no Landlock")
    first = f"open(os.path.expanduser('~/own'), 'w'); open({str(tmp_path / 'proof')!r}, 'w')"
    source = write_own_network(tmp_path / "bundle", first=first)
    with pytest.raises(ModelInvalid, match=r"Net fails: PermissionError: .*proof"):
        run_import(source, allow_code=True)
    assert not (tmp_path / "proof").exists()


def test_code_leaves_no_links_through_which_the_import_writes(run_import: Import, tmp_path: Path) -> None:
    if not find_limits().writing:
        pytest.skip("the kernel has no Landlock")
    victim = tmp_path / "victim"
    first = f"""
import json, sys
from pathlib import Path
target = Path(json.loads(Path(sys.argv[1]).read_text())["arguments"]["target"])
for folder in (target.parent, Path(sys.argv[1]).parent):
    for name in ("manifest.json", "README.md", "import.json", "task.json", "log.txt"):
        try:
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to({str(victim)!r})
        except OSError:
            pass
"""
    imported = run_import(write_own_network(tmp_path / "bundle", first=first), allow_code=True)
    assert not victim.exists()
    assert not any(path.is_symlink() for path in imported.folder.iterdir())


def test_code_has_no_network(run_import: Import, tmp_path: Path) -> None:
    if not find_limits().network:
        pytest.skip("the kernel has no namespaces of networks for this user")
    with socket.create_server(("127.0.0.1", 0)) as server:
        first = f"socket.create_connection({server.getsockname()!r}, timeout=5)"
        source = write_own_network(tmp_path / "bundle", first=first)
        with pytest.raises(ModelInvalid, match=r"Net fails: (OSError: .*unreachable|PermissionError)"):
            run_import(source, allow_code=True)
