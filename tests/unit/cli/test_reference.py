"""Generated documentation is up to date, and written documentation names only commands and files that exist."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import dropwhile
from pathlib import Path
from pkgutil import resolve_name
from urllib.parse import urlsplit

import click
import pytest
import yaml
from dotenv import dotenv_values
from jsonschema import Draft202012Validator

from inference_service.cli.main import main
from inference_service.cli.reference import reference_pages
from inference_service.contract.slice_selection import SELECTABLE
from inference_service.contract.task_message import parse_request
from inference_service.core.errors import BadRequest, ErrorCode
from inference_service.core.remedies import REMEDIES
from inference_service.core.report_warnings import WarningCode
from inference_service.core.settings import Settings
from inference_service.gateway.app import make_app
from inference_service.gateway.problems import HTTP_REMEDIES, HttpCode

REPOSITORY = Path(__file__).parents[3]
DOCS = REPOSITORY / "docs"
PAGES = reference_pages()
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MODEL_PAGES = sorted((REPOSITORY / "models").glob("*/*/README.md"))
GUIDES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
TRAINING_PAGES = sorted((REPOSITORY / "training").glob("*/README.md"))
MARKDOWN = [*GUIDES, *sorted(DOCS.rglob("*.md")), *MODEL_PAGES, *TRAINING_PAGES]


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(PAGES[f"{name}.schema.json"]))


def commands(text: str) -> list[list[str]]:
    """Returns the words of each command line in the shell blocks of a page."""
    blocks = re.findall(r"^```(?:sh|shell|console)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [words for block in blocks for words in split(block)]


def split(block: str) -> Iterator[list[str]]:
    """Yields the words of each command of a block; a command continues over backslashes and open quotes."""
    command = ""
    for line in block.replace("\\\n", " ").splitlines(keepends=True):
        command += line.removeprefix("$ ")
        try:
            words = shlex.split(command, comments=True)
        except ValueError:
            continue
        yield words
        command = ""
    assert not command, f"unclosed quotes: {command}"


def all_commands() -> list[tuple[str, list[str]]]:
    return [
        (str(page.relative_to(REPOSITORY)), words)
        for page in MARKDOWN
        for words in commands(page.read_text(encoding="utf-8"))
        if words
    ]


@pytest.mark.parametrize("name", PAGES)
def test_the_generated_pages_are_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name], "run `inference-service reference docs`"


@pytest.mark.parametrize("name", [name for name in PAGES if name.endswith(".json")])
def test_the_schemas_are_valid_json_schemas(name: str) -> None:
    Draft202012Validator.check_schema(json.loads(PAGES[name]))


def test_the_schemas_keep_the_published_names_of_their_definitions() -> None:
    manifest = json.loads(PAGES["manifest.schema.json"])
    message = json.loads(PAGES["task-message.schema.json"])
    assert manifest["$defs"].keys() >= {"Code", "RemoveSmall"}
    assert message["$defs"]["Options"]["title"] == "Options"


def test_the_message_schema_accepts_valid_messages_only() -> None:
    message = {
        "job_id": "7d444840-9dc0-11d1-b245-5ffdce74fad2",
        "request": {"input": {"key": "ct/1.nii.gz"}, "model": "ct-chest", "priority": "urgent", "model_version": None},
    }
    assert validator("task-message").is_valid(message)
    assert not validator("task-message").is_valid({**message, "extra": 1})
    assert not validator("task-message").is_valid({"job_id": message["job_id"], "request": {"model": "ct-chest"}})


@pytest.mark.parametrize(
    "reference",
    [
        {"key": "a"},
        {"bucket": "volumes", "key": "a", "series": "1.2", "select": {"EchoTime": 80}},
        {"key": "a", "channels": {}},
        {"channels": {"T1": {"key": "a"}, "FLAIR": {"bucket": "volumes", "key": "b", "series": "1.2"}}},
        {"bucket": None, "series": None, "select": {}, "channels": {"T1": {"key": "a", "bucket": None}}},
        {},
        {"channels": {}},
        {"bucket": "volumes"},
        {"key": None, "channels": {"T1": {"key": "a"}}},
        {"key": "a", "channels": {"T1": {"key": "a"}}},
        {"series": "1.2", "channels": {"T1": {"key": "a"}}},
        {"bucket": "volumes", "channels": {"T1": {"key": "a"}}},
        {"select": {"EchoTime": 80}, "channels": {"T1": {"key": "a"}}},
        {"channels": {"T1": {}}},
        {"channels": {"T1": {"key": "a", "more": 1}}},
        {"channels": {"": {"key": "a"}}},
        {"channels": {str(number): {"key": "a"} for number in range(16)}},
        {"channels": {str(number): {"key": "a"} for number in range(17)}},
    ],
)
def test_the_message_schema_and_the_parser_accept_the_same_inputs(reference: dict[str, object]) -> None:
    request = {"input": reference, "model": "ct-chest"}
    try:
        parse_request(request)
        accepted = True
    except BadRequest:
        accepted = False
    message = {"job_id": "7d444840-9dc0-11d1-b245-5ffdce74fad2", "request": request}
    assert validator("task-message").is_valid(message) is accepted


def test_the_manifest_schema_accepts_the_installed_model() -> None:
    manifest = json.loads((REPOSITORY / "models/ct-tissue/1/manifest.json").read_bytes())
    assert validator("manifest").is_valid(manifest)
    assert not validator("manifest").is_valid({**manifest, "activation": "relu"})
    assert not validator("manifest").is_valid({**manifest, "channels": []})


def test_the_example_environment_lists_every_setting_and_no_other() -> None:
    text = (REPOSITORY / ".env.example").read_text(encoding="utf-8")
    lines = text.partition("\n# Docker compose only")[0].splitlines()
    names = [match[1] for line in lines if (match := re.match(r"#? ?([A-Z][A-Z0-9_]+)=", line))]
    assert names == [name.upper() for name in Settings.model_fields]


def test_the_example_environment_is_valid_and_its_comments_show_the_defaults(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (REPOSITORY / ".env.example").read_text(encoding="utf-8")
    (tmp_path / "all").write_text(re.sub(r"^# (?=[A-Z][A-Z0-9_]+=)", "", text, flags=re.MULTILINE))
    given = set(dotenv_values(REPOSITORY / ".env.example"))
    monkeypatch.delenv("MODELS_PATH")
    for name, value in dotenv_values(tmp_path / "all").items():
        monkeypatch.setenv(name, value or "")
    settings = Settings()
    for name, field in Settings.model_fields.items():
        if name.upper() not in given:
            assert getattr(settings, name) == field.get_default(call_default_factory=True), name


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 120


def test_there_are_commands_to_check() -> None:
    names = {words[0] for _, words in all_commands()}
    assert {"make", "inference-service"} <= names


@pytest.mark.parametrize(("page", "words"), all_commands(), ids=lambda value: " ".join(value) if value else None)
def test_the_commands_in_the_pages_exist(page: str, words: list[str]) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    words = list(dropwhile(lambda word: re.match(r"[A-Z_]+=", word), words))
    if words[0] == "make":
        targets = [word for word in words[1:] if "=" not in word]
        assert targets
        assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
        if targets == ["train"]:
            of_train, of_export = (
                [option for word in words if word.startswith(name) for option in re.findall(r"--[a-z-]+", word)]
                for name in ("ARGS=", "EXPORT=")
            )
            assert_options("training.ct_chest.train", of_train)
            assert_options("training.ct_chest.export", of_export)
    elif words[:2] == [".venv/bin/python", "-m"] and words[2].startswith("training."):
        assert_options(words[2], [word for word in words if word.startswith("--")])
    elif words[0] == ".venv/bin/pre-commit":
        assert (REPOSITORY / ".pre-commit-config.yaml").is_file()
    elif words[0] == "inference-service":
        parse(main, words[1:])
    elif words[:2] == ["docker", "compose"]:
        files = [word for word in words if word.endswith(".yml")]
        assert all((REPOSITORY / file).is_file() for file in files)
        services = {name for word in words for name in re.findall(r"inference-worker-\w+", word)}
        assert all(any(name in (REPOSITORY / file).read_text() for file in files) for name in services)
    elif words[0] == "cp":
        assert (REPOSITORY / words[1]).is_file()
    elif words[0] == "kubectl":
        assert all((REPOSITORY / word).exists() for word in words if word.startswith("deploy/"))
    elif words[:2] == ["docker", "run"] and "worker" in words:
        parse(main, words[words.index("worker") :])
    else:
        assert_plain_command(page, words)


def assert_plain_command(page: str, words: list[str]) -> None:
    """The command is a call of the HTTP API, a script of the repository, or one that has no check."""
    if words[0] == "curl":
        assert_call(words)
        return
    scripts = [word for word in words[:2] if word.startswith("docker/")]
    assert all((REPOSITORY / script).is_file() for script in scripts)
    plain = {"git", "cd", "pip", "grep", "set", ".", "python", "mkdir", "export", "docker"}
    assert scripts or words[0] in plain, f"{page}: no check for the command {words[0]}"


def assert_call(words: list[str]) -> None:
    """The path exists in the HTTP API, and a job's request is valid where its scan has a key."""
    assert urlsplit(words[-1]).path in make_app(Settings(), local=True).openapi()["paths"]
    for word in words:
        if word.startswith("request="):
            request = json.loads(word.removeprefix("request=").partition(";")[0])
            parse_request({**request, "input": {"key": "uploads"}})
        elif word.startswith("{"):
            parse_request(json.loads(word)["request"])


def assert_options(module: str, options: list[str]) -> None:
    """The options occur in the source of the module, which may need PyTorch to be imported."""
    source = (REPOSITORY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    for option in options:
        assert f'"{option}"' in source, f"{module} has no {option}"


def parse(command: click.Command, words: list[str]) -> None:
    """Parses the words with click without running the command."""
    if isinstance(command, click.Group):
        subcommand = command.commands[words[0]]
        parse(subcommand, words[1:])
    else:
        # Click caches the help option of a command's first context.
        above = click.Context(main, **main.context_settings)
        command.make_context(command.name, list(words), parent=above)


def test_every_command_is_documented() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in MARKDOWN)
    for name in main.commands:
        assert f"inference-service {name}" in text or f"`{name}" in text, name


@pytest.mark.parametrize(
    ("page", "heading", "codes", "remedies"),
    [
        ("task-contract.md", "## Error codes\n", ErrorCode, REMEDIES),
        ("http-api.md", "## Errors\n", HttpCode, HTTP_REMEDIES),
    ],
)
def test_every_error_code_is_documented_with_its_remedy(
    page: str, heading: str, codes: type[StrEnum], remedies: Mapping[StrEnum, str]
) -> None:
    section = (DOCS / page).read_text(encoding="utf-8").partition(heading)[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_]+)` \|.*\| ([^|]+) \|$", section, flags=re.MULTILINE)
    assert {code: remedy.replace("`", "") for code, remedy in rows} == {code: remedies[code] for code in codes}


def test_the_page_lists_the_attributes_that_select_slices() -> None:
    page = (DOCS / "task-contract.md").read_text(encoding="utf-8")
    table = page.partition("| subject | attributes |\n|---|---|\n")[2].partition("\n\n")[0]
    listed = ", ".join(row.split("|")[2].strip() for row in table.splitlines())
    assert sorted(listed.split(", ")) == sorted(SELECTABLE)


def test_the_table_of_warnings_lists_every_code() -> None:
    section = (DOCS / "task-contract.md").read_text(encoding="utf-8").partition("## Warning codes\n")[2]
    table = section.partition("\n## ")[0]
    assert re.findall(r"^\| `([a-z0-9_]+)` \|", table, flags=re.MULTILINE) == list(WarningCode)


def test_links_between_pages_have_existing_targets() -> None:
    for page in MARKDOWN:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_files_that_the_contributor_guide_names_exist() -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = [name for name in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if not name.startswith((".venv", "site/"))]
    assert len(named) > 20
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_the_modules_that_the_architecture_names_exist() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    modules = re.findall(r"`([a-z_]+(?:\.(?!py`)[a-z_]+)+)`", text)
    assert len(modules) > 10
    paths = [REPOSITORY / "inference_service" / name.replace(".", "/") for name in modules]
    assert [str(path) for path in paths if not (path.is_dir() or path.with_suffix(".py").is_file())] == []


def api_objects() -> Iterator[tuple[str, list[str]]]:
    """Yields the dotted name of each object on the API pages, and the members that its page selects."""
    for page in sorted((DOCS / "api").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for name, options in re.findall(r"^::: (\S+)\n((?: +.*\n)*)", text, flags=re.MULTILINE):
            yield name, ((yaml.safe_load(options) or {}).get("options") or {}).get("members", [])


@pytest.mark.parametrize(("name", "members"), list(api_objects()))
def test_the_objects_on_the_api_pages_exist(name: str, members: list[str]) -> None:
    documented = resolve_name(name)
    assert [member for member in members if not hasattr(documented, member)] == []


def test_the_names_in_the_contributor_guides_steps_are_in_the_files_of_the_step() -> None:
    guide = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Add a format")[2]
    steps = re.findall(r"^\d\. .*\n(?: +.*\n)*", guide, flags=re.MULTILINE)
    assert len(steps) > 20
    assert [(step, missing) for step in steps if (missing := missing_names(step))] == []


def missing_names(step: str) -> list[str]:
    """Returns the identifiers of a step that occur in none of the files that the step names, if it names any."""
    quoted = re.findall(r"`([^`]+)`", step)
    files = [REPOSITORY / name for name in quoted if (REPOSITORY / name).is_file()]
    words = {word for file in files for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}
    return [name for name in quoted if files and name.isidentifier() and name not in words]
