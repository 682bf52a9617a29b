"""The generated part of `docs/`: the JSON Schemas of messages, manifests and reports, and the table of settings."""

import json

from pydantic import BaseModel, Secret, SecretStr
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from inference_service.contract.manifest import Manifest
from inference_service.contract.report import Report
from inference_service.contract.task_message import TaskMessage
from inference_service.core.settings import Settings

# Others refer to these definitions, and generate code from them: the schemas keep the names of the first release.
_PUBLISHED_NAMES = {"CodedConcept": "Code", "RemoveSmallComponents": "RemoveSmall", "RequestOptions": "Options"}

_SETTINGS_HEAD = """# Settings

Settings are environment variables, or lines of a `.env` file in the working directory. Lists are JSON. This page is
generated from the code by `inference-service reference docs`.

| variable | default | meaning |
|---|---|---|
"""


class _PublishedSchema(GenerateJsonSchema):
    def normalize_name(self, name: str) -> str:
        return super().normalize_name(_PUBLISHED_NAMES.get(name, name))


def reference_pages() -> dict[str, str]:
    """Returns the content of each generated file by file name."""
    return {
        "task-message.schema.json": _schema(TaskMessage),
        "manifest.schema.json": _schema(Manifest),
        "report.schema.json": _schema(Report),
        "settings.md": settings_page(),
    }


def settings_page() -> str:
    """Returns the table of all settings in Markdown."""
    rows = (
        f"| `{name.upper()}` | {_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    )
    return _SETTINGS_HEAD + "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "unset"
    value = field.default
    shown = value.get_secret_value() if isinstance(value, Secret | SecretStr) else value
    if shown is None or shown == "":
        return "unset"
    return f"`{json.dumps(shown if isinstance(shown, bool | int | float | list) else str(shown)).strip(chr(34))}`"


def _schema(model: type[BaseModel]) -> str:
    schema = model.model_json_schema(schema_generator=_PublishedSchema)
    for definition in schema["$defs"].values():
        definition["title"] = _PUBLISHED_NAMES.get(definition["title"], definition["title"])
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
