"""Results that the HTTP gateway sends."""

import hashlib

import httpx
import pytest
from gateway_server import problem

pytestmark = pytest.mark.usefixtures("no_jobs_left")


def test_results_have_types_names_and_checksums(finished: tuple[httpx.Client, str]) -> None:
    client, path = finished
    job = client.get(path).json()
    assert job["state"] == "succeeded"
    gzip = "application/gzip"
    types = {"mask": gzip, "scan": gzip, "report": "application/json", "preview": "image/png"}
    for name, media_type in types.items():
        answer = client.get(f"{path}/results/{name}")
        assert answer.headers["Content-Type"] == media_type
        assert hashlib.sha256(answer.content).hexdigest() == job["checksums"][name]["sha256"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="preview.png"'
    assert problem(client.get(f"{path}/results/nrrd")) == (404, "not_found")
    assert problem(client.get(f"{path}/results/bucket")) == (404, "not_found")


def test_results_are_sent_in_ranges(finished: tuple[httpx.Client, str]) -> None:
    client, path = finished
    whole = client.get(f"{path}/results/mask")
    tag = whole.headers["ETag"]

    def part(**headers: str) -> httpx.Response:
        return client.get(
            f"{path}/results/mask", headers={name.replace("_", "-"): each for name, each in headers.items()}
        )

    some = part(Range="bytes=10-19")
    assert (some.status_code, some.content) == (206, whole.content[10:20])
    assert some.headers["Content-Range"] == f"bytes 10-19/{len(whole.content)}"
    assert part(Range="bytes=-5").content == whole.content[-5:]
    assert part(Range="bytes=100-").content == whole.content[100:]
    assert part(Range="bytes=0-9", If_Range='"other"').content == whole.content
    assert part(If_None_Match=tag).status_code == 304
    assert problem(part(Range=f"bytes={len(whole.content)}-")) == (416, "range_not_satisfiable")
    head = client.head(f"{path}/results/mask")
    assert (head.headers["Content-Length"], head.content) == (str(len(whole.content)), b"")
