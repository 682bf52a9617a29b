"""The scripts that create secrets and identities. tests/e2e/test_identities.py runs the service with them."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from inference_service.jobs.grants import RIGHTS
from inference_service.jobs.schema import Base

REPOSITORY = Path(__file__).parents[2]
IDENTITIES = REPOSITORY / "deploy" / "identities"
MAKE_SECRETS = REPOSITORY / "docker" / "make-secrets.sh"
# Stands in for MinIO's client: notes its arguments and its input, and a user's policy once it is attached.
MC = """#!/bin/bash
{ echo "mc $*"; [ -p /dev/stdin ] || [ -f /dev/stdin ] && cat; } >>"$NOTES"
case "$*" in
*"policy create"*) cat "$6" >"$NOTES.$5.json";;
*"policy attach"*) [ ! -e "$NOTES.attached" ] || exit 1; echo "$5" >>"$NOTES.users";;
*"user info"*) cat "$NOTES.users";;
esac
"""


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    path = tmp_path / "secrets"
    assert run(MAKE_SECRETS, SECRETS_PATH=str(path)).returncode == 0
    return path


def test_secrets_are_private_random_and_made_once(secrets: Path, tmp_path: Path) -> None:
    contents = {path.name: path.read_text() for path in secrets.iterdir()}
    assert secrets.stat().st_mode & 0o777 == 0o700
    passwords = [content for name, content in contents.items() if not name.endswith("access_key")]
    assert len(set(passwords)) == len(passwords)
    assert all(re.fullmatch("(operator:)?[0-9a-f]{48}", password) for password in passwords)
    (secrets / "redis_keda_password").unlink()
    assert run(MAKE_SECRETS, SECRETS_PATH=str(secrets)).returncode == 0
    again = {path.name: path.read_text() for path in secrets.iterdir()}
    assert [name for name in contents if contents[name] != again[name]] == ["redis_keda_password"]


def test_an_existing_installation_keeps_its_administrators_passwords(tmp_path: Path) -> None:
    known = {"REDIS_PASSWORD": "r", "POSTGRES_PASSWORD": "p", "MINIO_ACCESS_KEY": "a", "MINIO_SECRET_KEY": "s"}
    assert run(MAKE_SECRETS, SECRETS_PATH=str(tmp_path / "secrets"), **known).returncode == 0
    kept = [
        (tmp_path / "secrets" / f"{name}").read_text()
        for name in (
            "redis_admin_password",
            "postgres_admin_password",
            "minio_admin_access_key",
            "minio_admin_secret_key",
        )
    ]
    assert kept == ["r", "p", "a", "s"]


def test_the_aclfile_has_a_hash_for_each_password(secrets: Path) -> None:
    (secrets / "redis_keda_password").unlink()
    lines = run("sh", IDENTITIES / "redis-users.sh", SECRETS_PATH=str(secrets)).stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["default", "worker", "upstream", "gateway", "monitoring"]
    for line in lines:
        assert re.match(r"user \w+ reset on #[0-9a-f]{64} (%R)?~", line)


@pytest.mark.parametrize("content", [None, ""])
def test_without_an_administrators_password_redis_does_not_start(secrets: Path, content: str | None) -> None:
    path = secrets / "redis_admin_password"
    path.unlink()
    if content is not None:
        path.write_text(content)
    done = run("sh", IDENTITIES / "redis-users.sh", SECRETS_PATH=str(secrets))
    assert done.returncode != 0
    assert "redis_admin_password" in done.stderr


@pytest.fixture
def storage(tmp_path: Path, secrets: Path) -> dict[str, str]:
    """The environment in which the users of MinIO are created, with a client that notes what it should do."""
    program = tmp_path / "bin" / "mc"
    program.parent.mkdir()
    program.write_text(MC)
    program.chmod(0o755)
    return {
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
        "NOTES": str(tmp_path / "notes"),
        "SECRETS_PATH": str(secrets),
        "MINIO_URL": "http://minio:9000",
        "MINIO_INPUT_BUCKET": "scans",
        "MINIO_OUTPUT_BUCKET": "results",
    }


def test_each_user_of_the_storage_gets_its_policy(storage: dict[str, str], secrets: Path, tmp_path: Path) -> None:
    done = run("bash", IDENTITIES / "s3-users.sh", **storage)
    assert done.returncode == 0, done.stderr
    notes = (tmp_path / "notes").read_text()
    arguments = [line for line in notes.splitlines() if line.startswith("mc ")]
    for identity in ("migrate", "worker", "upstream", "gateway"):
        secret = (secrets / f"minio_{identity}_secret_key").read_text()
        assert f"mc admin user add server\ninference-{identity}\n{secret}\n" in notes
        assert f"mc admin policy attach server inference-{identity} --user inference-{identity}" in arguments
        policy = (tmp_path / f"notes.inference-{identity}.json").read_text()
        assert {"arn:aws:s3:::scans", "arn:aws:s3:::results"} >= {
            resource.partition("/")[0]
            for statement in json.loads(policy)["Statement"]
            for resource in statement["Resource"]
        }
    assert not (tmp_path / "notes.inference-models.json").exists()
    assert not [line for line in arguments for path in secrets.glob("minio_*_secret_key") if path.read_text() in line]
    (tmp_path / "notes.attached").touch()
    assert run("bash", IDENTITIES / "s3-users.sh", **storage).returncode == 0


def test_stored_models_have_an_identity_that_alone_writes_them(storage: dict[str, str], tmp_path: Path) -> None:
    done = run("bash", IDENTITIES / "s3-users.sh", **storage, MODELS_BUCKET="weights")
    assert done.returncode == 0, done.stderr
    writers = set()
    for identity in ("migrate", "worker", "upstream", "models", "gateway"):
        policy = json.loads((tmp_path / f"notes.inference-{identity}.json").read_text())
        for statement in policy["Statement"]:
            if "arn:aws:s3:::weights/*" in statement["Resource"] and "s3:PutObject" in statement["Action"]:
                writers.add(identity)
    assert writers == {"models"}
    policy = json.loads((tmp_path / "notes.inference-models.json").read_text())
    named = {resource.partition("/")[0] for statement in policy["Statement"] for resource in statement["Resource"]}
    assert named == {"arn:aws:s3:::weights"}


def test_an_identity_with_the_administrators_key_gets_no_user(
    storage: dict[str, str], secrets: Path, tmp_path: Path
) -> None:
    for identity in ("migrate", "worker", "upstream", "gateway"):
        (secrets / f"minio_{identity}_access_key").write_text((secrets / "minio_admin_access_key").read_text())
    done = run("bash", IDENTITIES / "s3-users.sh", **storage)
    assert (done.returncode, done.stderr.count("WARNING")) == (0, 4)
    assert not (tmp_path / "notes").exists()


def test_a_policy_that_is_not_attached_is_an_error(storage: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "notes.attached").touch()
    (tmp_path / "notes.users").touch()
    done = run("bash", IDENTITIES / "s3-users.sh", **storage)
    assert done.returncode != 0
    assert "no policy" in done.stderr


def test_rights_name_columns_that_exist() -> None:
    roles = (IDENTITIES / "postgres-roles.sql").read_text()
    for role, rights in RIGHTS.items():
        assert f"'{role}'" in roles
        for right in rights:
            privileges, _, table = right.rpartition(" ON ")
            names = {name.strip() for listed in re.findall(r"\(([^)]*)\)", privileges) for name in listed.split(",")}
            if names:
                assert names <= {column.name for column in Base.metadata.tables[table].columns}
