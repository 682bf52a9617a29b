"""The errors of pydantic as short texts, without the values that were given."""

from pydantic import ValidationError


def first_problem(error: ValidationError) -> str:
    """Returns the first problem that a validation has found: the field and the reason."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, first["loc"])) or "the top level"
    return f"{field}: {'unknown field' if first['type'] == 'extra_forbidden' else first['msg']}"
