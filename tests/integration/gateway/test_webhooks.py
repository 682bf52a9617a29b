"""Webhooks: ends of jobs are reported at least once, signed, and to permitted addresses alone."""

import asyncio
import base64
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import UUID, uuid4

import httpx
import pytest
from jobs_in_process import claim
from sqlalchemy import delete, func, update
from standardwebhooks import Webhook, WebhookVerificationError

from inference_service.contract.task_message import parse_request
from inference_service.core.errors import BadRequest, DatabaseUnavailable, InputCorrupt
from inference_service.core.settings import Settings
from inference_service.gateway.webhooks import calls as webhook_calls
from inference_service.gateway.webhooks.calls import WebhookSettings, check_url
from inference_service.gateway.webhooks.delivery import deliver_due
from inference_service.jobs import attempts, job_store, resubmission
from inference_service.jobs.database import Database, connect
from inference_service.jobs.gateway import webhooks
from inference_service.jobs.gateway.webhooks import DueWebhook
from inference_service.jobs.schema import JobRow, WebhookRow

pytestmark = pytest.mark.usefixtures("no_jobs_left")

REQUEST = parse_request({"input": {"key": "scan"}, "model": "ct-tissue"})
SECRET = b"the secret of a test"
Calls = list[tuple[str, dict[str, str], bytes]]


@contextmanager
def receiver(statuses: Sequence[int] = (), location: str = "") -> Iterator[tuple[str, Calls]]:
    """A server that takes calls: it answers with each status once, then with 204."""
    left = list(statuses)
    calls: Calls = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            calls.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(left.pop(0) if left else 204)
            if location:
                self.send_header("Location", location)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}/hooks/end", calls
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def no_webhooks(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(delete(WebhookRow))


def deliver(database: Database, *, private_addresses: bool = True) -> int:
    async def run() -> int:
        async with httpx.AsyncClient() as client:
            return await deliver_due(database, client, WebhookSettings(SECRET, private_addresses))

    return asyncio.run(run())


def submit(database: Database, url: str) -> UUID:
    job_id = uuid4()
    assert job_store.create(
        database, job_id, REQUEST, in_transaction=lambda connection: webhooks.record(connection, job_id, url)
    )
    return job_id


def make_due(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(update(WebhookRow).values(due_at=func.now()))


def test_an_end_is_reported_once_and_signed(database: Database) -> None:
    with receiver() as (url, calls):
        job_id = submit(database, url)
        assert deliver(database) == 0
        job_store.cancel(database, job_id)
        assert deliver(database) == 1
        assert deliver(database) == 0
    ((path, headers, body),) = calls
    assert path == "/hooks/end"
    content = json.loads(body)
    assert (content["type"], content["data"]["id"]) == ("job.cancelled", str(job_id))
    receivers = Webhook("whsec_" + base64.b64encode(SECRET).decode())
    receivers.verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        receivers.verify(body.replace(b"cancelled", b"succeeded"), headers)
    found = webhooks.state(database, job_id)
    assert found == webhooks.WebhookState(url, attempts=1, settled=True, error=None)


def test_a_failed_call_is_repeated_later(database: Database) -> None:
    with receiver([500, 302], location="http://localhost:1/") as (url, calls):
        job_id = submit(database, url)
        job_store.cancel(database, job_id)
        assert deliver(database) == 1
        assert deliver(database) == 0
        assert webhooks.state(database, job_id) == webhooks.WebhookState(
            url, attempts=1, settled=False, error="the receiver answered with status 500"
        )
        make_due(database)
        assert deliver(database) == 1  # a redirect is not followed
        make_due(database)
        assert deliver(database) == 1
        assert webhooks.state(database, job_id) == webhooks.WebhookState(url, attempts=3, settled=True, error=None)
    identities = {headers["webhook-id"] for _, headers, _ in calls}
    assert (len(calls), len(identities)) == (3, 1)


def test_the_end_after_a_retry_is_reported_too(database: Database) -> None:
    with receiver() as (url, calls):
        job_id = submit(database, url)
        claimed = claim(database, job_id)
        attempts.fail(database, claimed, InputCorrupt("damaged"))
        assert deliver(database) == 1
        resubmission.queue_again(database, job_id)
        assert deliver(database) == 0
        job_store.cancel(database, job_id)
        assert deliver(database) == 1
    assert [json.loads(body)["type"] for _, _, body in calls] == ["job.failed", "job.cancelled"]
    assert len({headers["webhook-id"] for _, headers, _ in calls}) == 2


def test_two_gateways_do_not_report_an_end_at_the_same_time(database: Database, settings: Settings) -> None:
    with receiver() as (url, calls), closing(connect(settings)) as other:
        ids = [submit(database, url) for _ in range(12)]
        for job_id in ids:
            job_store.cancel(database, job_id)
        threads = [threading.Thread(target=deliver, args=(each,)) for each in (database, other) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while deliver(database):
            pass
    assert sorted(json.loads(body)["data"]["id"] for _, _, body in calls) == sorted(map(str, ids))


@pytest.mark.parametrize("error", [DatabaseUnavailable("Postgres cannot be used"), RuntimeError("a fault")])
def test_a_webhook_whose_outcome_is_not_recorded_stops_no_other(
    database: Database, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    settle = webhooks.settle

    def fail_once(database: Database, taken: DueWebhook) -> None:
        if taken.job_id == failing:
            raise error
        settle(database, taken)

    with receiver() as (url, calls):
        failing, other = submit(database, url), submit(database, url)
        for job_id in (failing, other):
            job_store.cancel(database, job_id)
        with monkeypatch.context() as patch:
            patch.setattr(webhooks, "settle", fail_once)
            assert deliver(database) == 2
        found = webhooks.state(database, other)
        assert found is not None
        assert found.settled
        make_due(database)
        assert deliver(database) == 1
        assert len(calls) == 3


def test_a_url_that_the_library_refuses_is_given_up(database: Database) -> None:
    job_id = submit(database, "http://localhost:1/\x7f")
    job_store.cancel(database, job_id)
    assert deliver(database) == 1
    found = webhooks.state(database, job_id)
    assert found is not None
    assert (found.settled, found.error) == (True, "the URL is not valid")


def test_an_end_is_given_up_after_a_day_or_when_the_receiver_is_gone(database: Database) -> None:
    with receiver([410]) as (url, _):
        gone = submit(database, url)
        job_store.cancel(database, gone)
        deliver(database)
        found = webhooks.state(database, gone)
        assert found is not None
        assert (found.settled, found.error) == (True, "the receiver answered with status 410")
    late = submit(database, "http://localhost:1/hooks/")
    job_store.cancel(database, late)
    with database.begin() as connection:
        yesterday = func.now() - timedelta(hours=23, minutes=59, seconds=55)
        connection.execute(update(JobRow).where(JobRow.id == late).values(finished_at=yesterday))
    deliver(database)
    found = webhooks.state(database, late)
    assert found is not None
    assert (found.settled, found.error) == (True, "the receiver does not answer (ConnectError)")


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "[::1]", "169.254.169.254", "10.0.0.1", "0.0.0.0", "[64:ff9b::7f00:1]"]
)
def test_private_addresses_are_refused(database: Database, host: str) -> None:
    job_id = submit(database, f"http://{host}:9/hooks")
    job_store.cancel(database, job_id)
    assert deliver(database, private_addresses=False) == 1
    found = webhooks.state(database, job_id)
    assert found is not None
    assert found.error == "the receiver has an address that is not public; see WEBHOOK_PRIVATE_ADDRESSES"


def test_a_receiver_that_answers_too_slowly_is_left(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_calls, "_LIMIT_S", 0.3)
    released = threading.Event()

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            released.wait(20)

        def log_message(self, format: str, *args: object) -> None:
            """Logs nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        job_id = submit(database, f"http://localhost:{server.server_port}/")
        job_store.cancel(database, job_id)
        deliver(database)
        released.set()
        server.shutdown()
        thread.join()
    found = webhooks.state(database, job_id)
    assert found is not None
    assert found.error == "the receiver has not answered within 0.3 s"


@pytest.mark.parametrize(
    "url",
    [
        "https://ris.example/hooks",
        "https://ris.example/hooks/",
        "https://ris.example/hooks/end?of=job",
        "https://RIS.example:443/hooks/end",
        "http://10.0.0.7:8000/any",
    ],
)
def test_urls_below_a_prefix_are_permitted(url: str) -> None:
    check_url(url, ["https://ris.example/hooks/", "http://10.0.0.7:8000"])


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hooks",
        "ftp://ris.example/hooks/",
        "http://ris.example/hooks/",
        "https://ris.example:8443/hooks/",
        "https://ris.example/hooksandmore",
        "https://ris.example/hooks/../admin",
        "https://ris.example/hooks/%2e%2e/admin",
        "https://ris.example/hooks/%252e%252e/admin",
        "https://ris.example/hooks/..\\admin",
        "https://ris.example.evil.example/hooks/",
        "https://user@ris.example/hooks/",
        "https://ris.example@evil.example/hooks/",
        "https://ris.example/hooks/#fragment",
        "https://ris.example/hooks/ HTTP/1.1",
        "https://ris.example/hooks/\r\nX: y",
        "https://ris.example:x/hooks/",
        "https://[::1/hooks/",
        "http://10.0.0.7/any",
        "https://ris.example/hooks/" + "a" * 2000,
    ],
)
def test_urls_that_lead_elsewhere_are_refused(url: str) -> None:
    with pytest.raises(BadRequest, match="WEBHOOK_PREFIXES"):
        check_url(url, ["https://ris.example/hooks/", "http://10.0.0.7:8000"])
