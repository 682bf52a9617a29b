import re

import pytest

from inference_service.core import errors
from inference_service.core.errors import (
    ConfigurationError,
    ErrorCode,
    GpuError,
    GpuFailed,
    GpuOutOfMemory,
    InputError,
    InternalError,
    ModelError,
    OtherRedisInUse,
    OutOfMemory,
    PermanentError,
    QueueUnavailable,
    ServiceError,
    StorageRefused,
    StorageUnavailable,
    TransientError,
    WorkerLost,
    error_from_row,
)


def descendants(kind: type[ServiceError]) -> list[type[ServiceError]]:
    return [below for child in kind.__subclasses__() for below in (child, *descendants(child))]


KINDS: list[type[ServiceError]] = descendants(ServiceError)
CONCRETE = [kind for kind in KINDS if hasattr(kind, "code")]
SHARING: dict[type[ServiceError], type[ServiceError]] = {
    ConfigurationError: InternalError,
    StorageRefused: StorageUnavailable,
    OtherRedisInUse: QueueUnavailable,
    GpuOutOfMemory: OutOfMemory,
    GpuFailed: WorkerLost,
}
"""Classes that share the code of another class; an error rebuilt from a row has the other class."""


def drawn_tree() -> dict[str, tuple[str, str]]:
    """The parent and the text of each class in the module's docstring."""
    tree = {}
    ancestors = ["ServiceError"]
    for branch, name, text in re.findall(r"^    ([│ ]*[├└]── )(\w+) *(.*)$", errors.__doc__ or "", flags=re.MULTILINE):
        depth = len(branch) // 4
        ancestors = [*ancestors[:depth], name]
        tree[name] = (ancestors[depth - 1], text)
    return tree


def test_each_code_has_one_class_besides_those_that_share_it() -> None:
    assert sorted(kind.code for kind in CONCRETE if kind not in SHARING) == sorted(ErrorCode)
    assert all(kind.code == other.code for kind, other in SHARING.items())


def test_abstract_classes_have_no_code() -> None:
    abstract = {kind for kind in (ServiceError, *KINDS) if kind not in CONCRETE}
    assert abstract == {ServiceError, PermanentError, TransientError, InputError, ModelError, GpuError}


def test_the_docstring_draws_the_real_tree() -> None:
    drawn = drawn_tree()
    assert {name: parent for name, (parent, _) in drawn.items()} == {
        kind.__name__: kind.__mro__[1].__name__ for kind in KINDS
    }
    assert {kind.__name__: drawn[kind.__name__][1] for kind in CONCRETE} == {
        kind.__name__: kind.code.value for kind in CONCRETE
    }


@pytest.mark.parametrize("kind", CONCRETE)
def test_each_error_is_either_permanent_or_transient(kind: type[ServiceError]) -> None:
    assert issubclass(kind, PermanentError) != issubclass(kind, TransientError)


def test_only_errors_of_services_and_workers_are_retried() -> None:
    transient = {kind.code for kind in CONCRETE if issubclass(kind, TransientError) and not issubclass(kind, GpuError)}
    assert transient == {
        "storage_unavailable",
        "database_unavailable",
        "queue_unavailable",
        "embedded_server_error",
        "worker_lost",
    }


def test_gpu_errors_are_retried() -> None:
    assert issubclass(GpuError, TransientError)
    assert {kind for kind in CONCRETE if issubclass(kind, GpuError)} == {GpuOutOfMemory, GpuFailed}


@pytest.mark.parametrize("code", ErrorCode)
def test_an_error_is_rebuilt_from_its_row(code: ErrorCode) -> None:
    error = error_from_row(code.value, "what happened")
    assert (error.code, error.message) == (code, "what happened")
    assert type(error) in CONCRETE


@pytest.mark.parametrize("kind", CONCRETE)
def test_the_class_is_rebuilt_from_a_row(kind: type[ServiceError]) -> None:
    assert type(error_from_row(kind.code, "")) is SHARING.get(kind, kind)


def test_an_unknown_code_is_rebuilt_as_an_internal_error() -> None:
    assert type(error_from_row("of_a_later_version", "")) is InternalError


def test_each_class_has_a_docstring_of_one_sentence() -> None:
    sentences = [kind.__doc__ or "" for kind in (ServiceError, *KINDS)]
    assert all(re.fullmatch(r"[A-Z][^\n]*\.", sentence) for sentence in sentences)
