"""The Kubernetes manifests fit their schemas, and agree with each other and with the service.

The schemas are Kubernetes' own. No suitable wheel contains KEDA's, so its resources are checked against `KEDA`: those
fields of the definitions of KEDA 2.16 that the manifests use.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from inference_service.core.settings import Settings
from inference_service.jobs.celery_app import QUEUES
from inference_service.jobs.schema import JobRow

REPOSITORY = Path(__file__).parents[2]
MANIFESTS = REPOSITORY / "deploy" / "kubernetes"
OVERLAYS = sorted(path.parent for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))
# The oldest and the newest version that is in use.
VERSIONS = ("1.29", "1.37")
# Not settings: REDIS_URL is built from them.
REDIS = {"REDIS_ADDRESS", "REDIS_PASSWORD"}

Manifest = dict[str, Any]


def fields(**schemas: Manifest | str) -> Manifest:
    """Returns the schema of an object with exactly these fields; a string is the name of a type."""
    known = {name: {"type": kind} if isinstance(kind, str) else kind for name, kind in schemas.items()}
    return {"type": "object", "required": [*known], "properties": known, "additionalProperties": False}


def list_of(schema: Manifest) -> Manifest:
    return {"type": "array", "items": schema, "minItems": 1}


_REFERENCES = list_of(fields(parameter="string", name="string", key="string"))
_TRIGGER = fields(
    type={"enum": ["redis", "postgresql"]},
    name="string",
    authenticationRef=fields(name="string"),
    metadata={"type": "object", "additionalProperties": {"type": "string"}},
)
_ADVANCED = fields(
    scalingModifiers=fields(formula="string", target="string"),
    horizontalPodAutoscalerConfig=fields(behavior="object"),
)
KEDA = {
    "ScaledObject": fields(
        scaleTargetRef=fields(name="string"),
        minReplicaCount="integer",
        maxReplicaCount="integer",
        cooldownPeriod="integer",
        advanced=_ADVANCED,
        triggers=list_of(_TRIGGER),
    ),
    "TriggerAuthentication": fields(configMapTargetRef=_REFERENCES, secretTargetRef=_REFERENCES),
}

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def read(path: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def built(folder: Path) -> Iterator[Manifest]:
    """Yields the manifests of a folder's kustomization as they are in the files; no overlay patches any."""
    (kustomization,) = read(folder / "kustomization.yaml")
    assert set(kustomization) <= {"apiVersion", "kind", "namespace", "resources"}
    for resource in kustomization["resources"]:
        path = folder / resource
        yield from built(path) if path.is_dir() else read(path)


def check(manifest: Manifest) -> None:
    """Fails if a manifest does not fit its schema or has fields that the schema does not contain."""
    if manifest["apiVersion"] == "keda.sh/v1alpha1":
        jsonschema.validate(manifest["spec"], KEDA[manifest["kind"]])
    else:
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)


def of_kind(folder: Path, kind: str) -> dict[str, Manifest]:
    return {manifest["metadata"]["name"]: manifest for manifest in built(folder) if manifest["kind"] == kind}


def pods() -> dict[str, Manifest]:
    """Returns the specification of every pod by its file."""
    found = {}
    for path in MANIFESTS.rglob("*.yaml"):
        for manifest in read(path):
            if manifest["kind"] == "Pod":
                found[path.name] = manifest["spec"]
            elif "template" in manifest.get("spec", {}):
                found[f"{path.parent.name}/{path.name}"] = manifest["spec"]["template"]["spec"]
    return found


def config() -> dict[str, str]:
    (manifest,) = read(MANIFESTS / "base" / "config.yaml")
    return dict(manifest["data"])


@pytest.mark.parametrize("path", sorted(MANIFESTS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(MANIFESTS)))
def test_every_manifest_fits_its_schema(path: Path) -> None:
    if path.name != "kustomization.yaml":
        for manifest in read(path):
            check(manifest)


@pytest.mark.parametrize("kind", ["Deployment", "ScaledObject"])
def test_a_misspelt_field_does_not_fit(kind: str) -> None:
    for manifest in of_kind(OVERLAYS[0], kind).values():
        with pytest.raises(jsonschema.ValidationError, match="minReplica"):
            check({**manifest, "spec": {**manifest["spec"], "minReplica": 1}})


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_the_autoscaler_that_keda_creates_fits_its_schema(overlay: Path) -> None:
    for name, manifest in of_kind(overlay, "ScaledObject").items():
        spec = manifest["spec"]
        autoscaler = {
            "scaleTargetRef": {"kind": "Deployment", **spec["scaleTargetRef"]},
            "minReplicas": spec["minReplicaCount"],
            "maxReplicas": spec["maxReplicaCount"],
            **spec["advanced"]["horizontalPodAutoscalerConfig"],
        }
        head = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name}}
        check({**head, "spec": autoscaler})


def test_every_file_is_in_use() -> None:
    used = {str(manifest) for overlay in OVERLAYS for manifest in built(overlay)}
    shell = MANIFESTS / "models-shell.yaml"
    paths = [path for path in MANIFESTS.rglob("*.yaml") if path.name != "kustomization.yaml" and path != shell]
    assert [path for path in paths if not {str(manifest) for manifest in read(path)} <= used] == []


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_every_mode_renders(overlay: Path) -> None:
    done = subprocess.run(["kubectl", "kustomize", overlay], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    names = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in rendered}
    assert names == {(manifest["kind"], manifest["metadata"]["name"]) for manifest in built(overlay)}
    for manifest in rendered:
        check(manifest)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "inference"


@pytest.mark.parametrize(("name", "pod"), pods().items(), ids=pods())
def test_pods_are_restricted(name: str, pod: Manifest) -> None:
    assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
    context = pod["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} <= set(container["resources"])
    for volume in pod["volumes"]:
        assert "emptyDir" not in volume or "sizeLimit" in volume["emptyDir"]


def test_no_secret_is_in_the_repository() -> None:
    assert "Secret" not in {manifest["kind"] for path in MANIFESTS.rglob("*.yaml") for manifest in read(path)}
    assert [name for name in config() if re.search("PASSWORD|SECRET|ACCESS", name)] == []


def test_the_configuration_consists_of_settings() -> None:
    settings = {name.upper() for name in Settings.model_fields}
    given = set(config()) | {
        variable["name"] for pod in pods().values() for box in pod["containers"] for variable in box.get("env", [])
    }
    assert given - REDIS <= settings
    Settings(**{name.lower(): value for name, value in config().items() if name not in REDIS})  # type: ignore[arg-type]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_a_mode_deploys_the_workers_that_it_scales(overlay: Path) -> None:
    deployments = of_kind(overlay, "Deployment")
    scaled = of_kind(overlay, "ScaledObject")
    roles = {"mixed": {"cpu", "gpu"}}.get(overlay.name, {overlay.name})
    assert set(deployments) == set(scaled) == {f"inference-worker-{role}" for role in roles}
    waited_for = []
    for name, manifest in scaled.items():
        spec = manifest["spec"]
        assert spec["scaleTargetRef"]["name"] == name
        assert "replicas" not in deployments[name]["spec"]
        modifiers = spec["advanced"]["scalingModifiers"]
        assert modifiers["target"] == variables(deployments[name])["WORKER_CONCURRENCY"]
        assert set(re.findall("[a-z]+", modifiers["formula"])) == {trigger["name"] for trigger in spec["triggers"]}
        waited_for += [trigger["metadata"].get("listName") for trigger in spec["triggers"]]
    assert {name for name in waited_for if name} == set(QUEUES)


def variables(deployment: Manifest) -> dict[str, str]:
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {variable["name"]: variable["value"] for variable in container["env"]}


@pytest.mark.parametrize("role", ["cpu", "gpu"])
def test_a_worker_fits_its_role(role: str) -> None:
    (deployment,) = of_kind(MANIFESTS / "workers" / role, "Deployment").values()
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["worker", "--role", role]
    assert pod["terminationGracePeriodSeconds"] > int(config()["SHUTDOWN_GRACE_S"])
    assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (role == "gpu")
    labels = deployment["spec"]["template"]["metadata"]
    assert labels["annotations"]["prometheus.io/port"] == config()["METRICS_PORT"]
    (budget,) = of_kind(MANIFESTS / "workers" / role, "PodDisruptionBudget").values()
    (policy,) = read(MANIFESTS / "base" / "network-policy.yaml")
    for selector in (deployment["spec"]["selector"], budget["spec"]["selector"], policy["spec"]["podSelector"]):
        assert selector["matchLabels"].items() <= labels["labels"].items()


def test_keda_connects_to_the_configured_servers() -> None:
    triggers = [
        trigger
        for overlay in OVERLAYS
        for manifest in of_kind(overlay, "ScaledObject").values()
        for trigger in manifest["spec"]["triggers"]
    ]
    authentications = {
        entry["metadata"]["name"]: entry for entry in read(MANIFESTS / "base/trigger-authentication.yaml")
    }
    assert {trigger["authenticationRef"]["name"] for trigger in triggers} == set(authentications)
    for entry in authentications.values():
        assert {source["key"] for source in entry["spec"]["configMapTargetRef"]} <= set(config())
    queries = {trigger["metadata"]["query"] for trigger in triggers if trigger["type"] == "postgresql"}
    columns = JobRow.__table__.columns
    assert {query.replace("cpu", "gpu") for query in queries} == {
        f"SELECT count(*) FROM {JobRow.__tablename__} WHERE {columns['state'].name} = 'running' "
        f"AND {columns['lease_owner'].name} LIKE 'gpu-%'"
    }
