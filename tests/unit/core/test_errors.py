import re

import pytest

from inference_service.core import errors
from inference_service.core.errors import (
    BadRequest,
    ErrorCode,
    InputError,
    InternalError,
    ModelError,
    OutOfMemory,
    PermanentError,
    ServiceError,
    StorageUnavailable,
    TransientError,
    WorkerLost,
    error_from_row,
)


def descendants(kind: type[ServiceError]) -> list[type[ServiceError]]:
    return [below for child in kind.__subclasses__() for below in (child, *descendants(child))]


KINDS: list[type[ServiceError]] = descendants(ServiceError)
CONCRETE = [kind for kind in KINDS if not kind.__subclasses__()]


def drawn_tree() -> dict[str, tuple[str, str]]:
    """From the module's docstring: for each class its parent and the words beside it."""
    tree, ancestors = {}, ["ServiceError"]
    for branch, name, words in re.findall(r"^    ([│ ]*[├└]── )(\w+) *(.*)$", errors.__doc__ or "", flags=re.MULTILINE):
        depth = len(branch) // 4
        ancestors = [*ancestors[:depth], name]
        tree[name] = (ancestors[depth - 1], words)
    return tree


def test_each_code_has_one_class_and_each_concrete_class_one_code() -> None:
    assert sorted(kind.code for kind in CONCRETE) == sorted(ErrorCode)


def test_abstract_classes_have_no_code() -> None:
    abstract = [kind for kind in (ServiceError, *KINDS) if kind not in CONCRETE]
    assert set(abstract) == {ServiceError, PermanentError, TransientError, InputError, ModelError}
    assert not any(hasattr(kind, "code") for kind in abstract)


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
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


def test_only_faults_of_services_and_workers_are_retried() -> None:
    transient = {kind.code for kind in CONCRETE if issubclass(kind, TransientError)}
    assert transient == {"storage_unavailable", "database_unavailable", "queue_unavailable", "worker_lost"}


@pytest.mark.parametrize("code", ErrorCode)
def test_a_row_gives_back_the_error_that_was_recorded(code: ErrorCode) -> None:
    error = error_from_row(code.value, "what happened")
    assert (error.code, error.message) == (code, "what happened")
    assert type(error) in CONCRETE


@pytest.mark.parametrize("kind", [BadRequest, OutOfMemory, InternalError, StorageUnavailable, WorkerLost])
def test_a_row_gives_back_the_class(kind: type[ServiceError]) -> None:
    assert type(error_from_row(kind.code, "")) is kind


def test_each_class_says_in_one_sentence_what_it_means() -> None:
    sentences = [kind.__doc__ or "" for kind in (ServiceError, *KINDS)]
    assert all(re.fullmatch(r"[A-Z][^\n]*\.", sentence) for sentence in sentences)
