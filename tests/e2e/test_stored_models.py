"""Workers that share a cache and have no models of their own."""

from pathlib import Path
from uuid import uuid4

from fault_proxies import StorageProxy
from faults import LIMIT_S, PERIODS, wait_for

from inference_service import Client, SegmentRequest
from inference_service.embedded.servers import Servers
from inference_service.embedded.service_process import start_worker
from inference_service.embedded.stack import settings_for
from inference_service.engine.model_registry import find_model
from inference_service.jobs.schema import JobState
from inference_service.jobs.storage.object_storage import Storage
from inference_service.model_store.stored_models import StoredModels


def test_workers_fetch_a_stored_model_once(servers: Servers, scan: Path, tmp_path: Path) -> None:
    settings = settings_for(servers.environment)
    storage = Storage(settings)
    storage.ensure_bucket("models")
    prefix = f"of/{uuid4()}/"
    stored = StoredModels(storage, "models", prefix)
    stored.push(find_model(settings.models_path, "ct-tissue"))
    network = stored.read_index("ct-tissue", "1").files["model.onnx"].sha256
    proxy = StorageProxy(servers.s3.port)
    environment = {
        **servers.environment,
        **PERIODS,
        "MINIO_ENDPOINT": proxy.endpoint,
        "MODELS_PATH": str(tmp_path / "none"),
        "MODELS_BUCKET": "models",
        "MODELS_PREFIX": prefix,
        "MODELS_CACHE_PATH": str(tmp_path / "cache"),
    }
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with (
        proxy.running(),
        start_worker("cpu", environment, folder=tmp_path / "first") as first,
        start_worker("cpu", environment, folder=tmp_path / "second") as second,
        Client(settings) as client,
    ):
        for worker in (first, second):
            worker.wait_until_ready()
        request = SegmentRequest(input=client.upload(scan), model="ct-tissue")
        held = proxy.hold("GET", network)
        cancelled = client.submit(request)
        held.wait_until_arrived()
        client.cancel(cancelled)
        assert client.wait(cancelled, timeout_s=LIMIT_S).state is JobState.CANCELLED
        held.release()

        again = proxy.hold("GET", network)
        requests = len(proxy.requests)
        jobs = [client.submit(request) for _ in range(2)]
        again.wait_until_arrived()
        # Both workers know the version; one of them waits for the other.
        wait_for(lambda: sum(each.is_for("GET", "/index.json") for each in proxy.requests[requests:]) >= 2)
        again.release()
        assert [client.wait(job, timeout_s=LIMIT_S).state for job in jobs] == [JobState.SUCCEEDED] * 2
        # Of the cancelled job, and of one of the two.
        assert sum(each.is_for("GET", network) for each in proxy.requests) == 2
        own = [each for each in client.workers() if any(f"-{worker.pid}-" in each.name for worker in (first, second))]
        assert [[model.name for model in each.models] for each in own] == [["ct-tissue"]] * 2
    assert not list((tmp_path / "cache").glob(".*"))
