"""Jobs sent by two Celery clients for Node.js, which are installed into a temporary folder."""

import json
import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import pytest
from faults import Service, wait_for

from inference_service.embedded.stack import settings_for
from inference_service.jobs.schema import JobState

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PACKAGES = ("celery-node@0.5.9", "celery-ts@1.2.3")
COUNT = 5
# Each prints the job's id and the Celery task's for every message that it has sent. celery-ts chooses the latter.
CELERY_NODE = """
const [url, queue, request, count, protocol] = process.argv.slice(2);
const client = require("celery-node").createClient(url, url, queue);
client.conf.TASK_PROTOCOL = Number(protocol);
client.isReady().then(async () => {
  for (let i = 0; i < Number(count); i++) {
    const id = require("crypto").randomUUID();
    client.sendTask("inference_service.segment", [], { job_id: id, request: JSON.parse(request) }, id);
    console.log(id, id);
  }
  await client.broker.redis.ping();
  process.exit(0);
});
"""
CELERY_TS = """
const [url, queue, request, count, compression] = process.argv.slice(2);
const Celery = require("celery-ts");
const client = Celery.createClient({ brokerUrl: url, resultBackend: url });
const task = client.createTask("inference_service.segment");
for (let i = 0; i < Number(count); i++) {
  const kwargs = { job_id: require("crypto").randomUUID(), request: JSON.parse(request) };
  console.log(kwargs.job_id, task.applyAsync({ args: [], kwargs, queue, compression }).taskId);
}
client.brokers[0].connection.ping().then(() => process.exit(0));
"""


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node.js with npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    installed = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--no-save", *PACKAGES],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    if installed.returncode:
        pytest.skip("npm cannot install the packages")
    (folder / "celery_node.js").write_text(CELERY_NODE)
    (folder / "celery_ts.js").write_text(CELERY_TS)
    return folder


def send(service: Service, folder: Path, script: str, *options: str) -> list[tuple[UUID, UUID]]:
    """Sends messages and returns the ids of the job and of the Celery task of each."""
    request = json.dumps({"input": service.scan.model_dump(mode="json"), "model": "slow"})
    url = settings_for(service.servers.environment).broker_url
    output = subprocess.run(
        ["node", script, url, "overflow", request, str(COUNT), *options],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    sent = [(UUID(job_id), UUID(task_id)) for job_id, task_id in map(str.split, output.splitlines())]
    assert len(sent) == COUNT
    return sent


@pytest.mark.parametrize(
    ("script", "options"),
    [("celery_node.js", ["2"]), ("celery_node.js", ["1"]), ("celery_ts.js", ["identity"])],
    ids=["celery-node, protocol 2", "celery-node, protocol 1", "celery-ts"],
)
def test_jobs_of_a_node_client_succeed(service: Service, node_folder: Path, script: str, options: list[str]) -> None:
    with service.worker():
        job_ids = [job_id for job_id, _ in send(service, node_folder, script, *options)]
        wait_for(lambda: all(service.client.status(job_id) for job_id in job_ids))
        service.assert_succeeded(*job_ids)


def test_a_compressed_message_of_a_node_client_is_refused(service: Service, node_folder: Path) -> None:
    with service.worker():
        task_ids = [task_id for _, task_id in send(service, node_folder, "celery_ts.js", "zlib")]
        wait_for(lambda: all(service.client.status(task_id) for task_id in task_ids))
        for task_id in task_ids:
            service.assert_ended(task_id, JobState.FAILED, "bad_request")
