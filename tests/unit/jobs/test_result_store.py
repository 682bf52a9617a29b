from typing import cast

import pytest

from inference_service.contract.result_files import result_files
from inference_service.core.errors import InputNotFound
from inference_service.jobs.object_storage import Storage
from inference_service.jobs.result_store import ResultStore


class Copies:
    def __init__(self) -> None:
        self.made: list[tuple[str, str, str, str]] = []

    def copy(self, *objects: str) -> None:
        source_bucket, source, bucket, key = objects
        self.made.append((source_bucket, source, bucket, key))


def test_every_file_has_a_key_in_the_row() -> None:
    result = ResultStore(cast("Storage", Copies()), "masks/a/b").result
    assert result.pop("bucket") == "masks"
    assert sorted(result.values()) == sorted(f"a/b/{name}" for name in result_files(()).values())


def test_an_earlier_result_is_copied_whole_or_not_at_all() -> None:
    copies = Copies()
    output, earlier = (ResultStore(cast("Storage", copies), f"masks/{prefix}") for prefix in ("now", "earlier"))
    result = {name: key for name, key in earlier.result.items() if name != "preview"}
    with pytest.raises(InputNotFound):
        output.copy(result, before_each=lambda: None)
    assert copies.made == []
    output.copy(earlier.result, before_each=lambda: None)
    assert copies.made == [("masks", f"earlier/{name}", "masks", f"now/{name}") for name in result_files(()).values()]
