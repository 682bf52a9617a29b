"""The Kubernetes manifests fit their schemas, and agree with each other and with the service.

The schemas are Kubernetes' own. No suitable wheel contains KEDA's, so its resources are checked against `KEDA`: those
fields of the definitions of KEDA 2.16 that the manifests use.
"""

import os
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
from inference_service.gateway.app import make_app
from inference_service.gateway.server import STOP_LIMIT_S
from inference_service.jobs.queues.lists import QUEUES
from inference_service.jobs.schema import JobRow

REPOSITORY = Path(__file__).parents[2]
MANIFESTS = REPOSITORY / "deploy" / "kubernetes"
IDENTITIES = REPOSITORY / "deploy" / "identities"
GATEWAY = MANIFESTS / "gateway"
SHELLS = (MANIFESTS / "models-shell.yaml", MANIFESTS / "tokens-shell.yaml")
OVERLAYS = sorted(path.parent for path in MANIFESTS.glob("overlays/*/kustomization.yaml"))
# The oldest and the newest version that is in use.
VERSIONS = ("1.29", "1.37")
# Not a setting: REDIS_URL is built from it.
REDIS = {"REDIS_ADDRESS"}
SECRETS = Path("secrets/kustomization.yaml")
TLS = Path("components/tls/kustomization.yaml")

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
    for path in (*MANIFESTS.rglob("*.yaml"), IDENTITIES / "job.yaml"):
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
    used = {str(manifest) for folder in (*OVERLAYS, GATEWAY) for manifest in built(folder)}
    paths = [path for path in MANIFESTS.rglob("*.yaml") if path.name != "kustomization.yaml" and path not in SHELLS]
    assert [path for path in paths if not {str(manifest) for manifest in read(path)} <= used] == []


@needs_kubectl
@pytest.mark.parametrize("overlay", [*OVERLAYS, GATEWAY], ids=lambda path: path.name)
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
    for pod in pods().values():
        names = {variable["name"] for box in pod["containers"] for variable in box.get("env", [])}
        assert [
            name for name in names if re.search("PASSWORD|SECRET|ACCESS", name) and not name.endswith("_FILE")
        ] == []
        assert "secretRef" not in str(pod)


def secrets() -> dict[str, set[str]]:
    """Returns the keys of each Secret."""
    (kustomization,) = read(MANIFESTS / SECRETS)
    return {
        secret["name"]: {entry.partition("=")[0] for entry in (*secret["files"], *secret.get("literals", ()))}
        for secret in kustomization["secretGenerator"]
    }


def test_make_secrets_creates_the_files_of_the_secrets(tmp_path: Path) -> None:
    script = REPOSITORY / "docker" / "make-secrets.sh"
    subprocess.run([script], env={"PATH": os.environ["PATH"], "SECRETS_PATH": str(tmp_path)}, check=True)
    (kustomization,) = read(MANIFESTS / SECRETS)
    files = {entry.rpartition("=")[2] for secret in kustomization["secretGenerator"] for entry in secret["files"]}
    assert files <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(("name", "pod"), pods().items(), ids=pods())
def test_a_pod_reads_the_secret_of_its_own_identity(name: str, pod: Manifest) -> None:
    identity = {
        "models-shell.yaml": None,
        "tokens-shell.yaml": "migrate",
        "base/migrate.yaml": "migrate",
        "gateway/deployment.yaml": "gateway",
        "identities/job.yaml": "identities",
    }
    expected = identity.get(name, "worker")
    mounted = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
    assert mounted == ([f"inference-{expected}"] if expected else [])
    for box in pod["containers"]:
        given = {variable["name"]: variable["value"] for variable in box.get("env", [])}
        files = {Path(value) for variable, value in given.items() if variable.endswith("_FILE")}
        assert {path.parent for path in files} <= {Path("/run/secrets")}
        assert {path.name for path in files} <= (secrets()[mounted[0]] if mounted else set())
        if expected in {"worker", "migrate", "gateway"}:
            assert given["POSTGRES_USER"] == f"inference_{expected}"


@needs_kubectl
def test_the_job_of_the_identities_renders(tmp_path: Path) -> None:
    done = subprocess.run(["kubectl", "kustomize", IDENTITIES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rendered = list(yaml.safe_load_all(done.stdout))
    for manifest in rendered:
        check(manifest)
    (scripts,) = (manifest["data"] for manifest in rendered if manifest["kind"] == "ConfigMap")
    assert set(scripts) == {path.name for path in IDENTITIES.iterdir() if path.suffix != ".yaml"}
    (job,) = (manifest for manifest in rendered if manifest["kind"] == "Job")
    for box in job["spec"]["template"]["spec"]["containers"]:
        (script,) = (word for word in box["command"] if word.startswith("/identities/"))
        assert Path(script).name in scripts


def with_component(overlay: Path, component: str, folder: Path) -> list[Manifest]:
    """Renders a mode and the gateway with a component, as a kustomization of the operator's own does."""
    shutil.copytree(MANIFESTS, folder / "kubernetes")
    own = {"resources": [f"kubernetes/overlays/{overlay.name}", "kubernetes/gateway"]}
    own["components"] = [f"kubernetes/components/{component}"]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(own))
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_the_tls_component_connects_everything_with_tls(overlay: Path, tmp_path: Path) -> None:
    for manifest in with_component(overlay, "tls", tmp_path):
        check(manifest)
        if manifest["kind"] in {"Deployment", "Job"}:
            pod = manifest["spec"]["template"]["spec"]
            (box,) = pod["containers"]
            urls = [variable["value"] for variable in box["env"] if variable["name"] == "REDIS_URL"]
            assert all(url.startswith(f"rediss://{box['name']}@") for url in urls)
            assert "/run/ca" in {mount["mountPath"] for mount in box["volumeMounts"]}
        if manifest["kind"] == "ConfigMap":
            assert (manifest["data"]["POSTGRES_SSLMODE"], manifest["data"]["MINIO_SECURE"]) == ("verify-full", "true")


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_with_stored_models_no_pod_needs_the_claim(overlay: Path, tmp_path: Path) -> None:
    for manifest in with_component(overlay, "stored-models", tmp_path):
        check(manifest)
        assert manifest["kind"] != "PersistentVolumeClaim"
        if manifest["kind"] == "Deployment":
            pod = manifest["spec"]["template"]["spec"]
            (box,) = pod["containers"]
            assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in box["volumeMounts"]}
            assert "models" not in {volume["name"] for volume in pod["volumes"]}


def test_nothing_leaves_a_pod_but_to_named_servers() -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in read(MANIFESTS / "base/network-policy.yaml")}
    assert policies.pop("inference-nothing-else") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies.values():
        for rule in policy.get("egress", []):
            for peer in rule["to"]:
                assert peer["namespaceSelector"]["matchLabels"]
                assert peer["podSelector"]["matchLabels"]
        for rule in policy.get("ingress", []):
            assert all(peer["namespaceSelector"]["matchLabels"] for peer in rule["from"])
    components = {
        label
        for policy in policies.values()
        for expression in policy["podSelector"].get("matchExpressions", [])
        for label in expression["values"]
    }
    assert components == {"worker-cpu", "worker-gpu", "gateway", "identities"}


def test_the_configuration_consists_of_settings() -> None:
    settings = {name.upper() for name in Settings.model_fields}
    given = set(config()) | {
        variable["name"]
        for name, pod in pods().items()
        for box in pod["containers"]
        for variable in box.get("env", [])
        if name != "identities/job.yaml"
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
    for selector in (deployment["spec"]["selector"], budget["spec"]["selector"]):
        assert selector["matchLabels"].items() <= labels["labels"].items()


def test_requests_reach_the_gateway_through_the_ingress_alone() -> None:
    (deployment,) = of_kind(GATEWAY, "Deployment").values()
    (ingress,) = of_kind(GATEWAY, "Ingress").values()
    (service,) = of_kind(GATEWAY, "Service").values()
    (policy,) = of_kind(GATEWAY, "NetworkPolicy").values()
    (budget,) = of_kind(GATEWAY, "PodDisruptionBudget").values()
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {
        "name": service["metadata"]["name"],
        "port": {"name": service["spec"]["ports"][0]["name"]},
    }
    assert ingress["spec"]["tls"][0]["hosts"] == [rule["host"]]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert (
        labels
        == service["spec"]["selector"]
        == budget["spec"]["selector"]["matchLabels"]
        == policy["spec"]["podSelector"]["matchLabels"]
        == deployment["spec"]["selector"]["matchLabels"]
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": Settings().gateway_port, "metrics": int(config()["METRICS_PORT"])}
    assert service["spec"]["ports"][0]["targetPort"] == "http"
    assert [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]] == [ports["http"]]


def test_the_ingress_has_the_settings_of_the_documented_nginx() -> None:
    (ingress,) = of_kind(GATEWAY, "Ingress").values()
    given = {name.rpartition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items()}
    text = (REPOSITORY / "docs/http-api.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```\nlocation / \{\n(.*?)\}\n```", text, flags=re.DOTALL)
    settings = dict(re.findall(r"^ +(\w+) (\S+);$", block, flags=re.MULTILINE))
    del settings["proxy_pass"]
    settings["proxy_body_size"] = settings.pop("client_max_body_size")
    # An upload that waits for its turn is not read, which nginx bears for a minute by default.
    assert settings["proxy_send_timeout"] == settings["proxy_read_timeout"] == "1h"
    assert given == {name.replace("_", "-"): value.replace("1h", "3600") for name, value in settings.items()}


def test_the_gateway_is_probed_and_stops_in_time() -> None:
    (deployment,) = of_kind(GATEWAY, "Deployment").values()
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["gateway"]
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "readiness", "liveness")}
    # A restart ends uploads, but no outage of Postgres.
    assert paths == {"startup": "/healthz", "readiness": "/healthz", "liveness": "/v1/openapi.json"}
    app = make_app(Settings(), local=True)
    assert paths["startup"] in app.openapi()["paths"]
    assert paths["liveness"] == app.openapi_url
    pause_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > pause_s + STOP_LIMIT_S


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
        assert {source["name"] for source in entry["spec"]["secretTargetRef"]} == {"inference-keda"}
        assert {source["key"] for source in entry["spec"]["secretTargetRef"]} <= secrets()["inference-keda"]
    queries = {trigger["metadata"]["query"] for trigger in triggers if trigger["type"] == "postgresql"}
    columns = JobRow.__table__.columns
    assert {query.replace("cpu", "gpu") for query in queries} == {
        f"SELECT count(*) FROM {JobRow.__tablename__} WHERE {columns['state'].name} = 'running' "
        f"AND {columns['lease_owner'].name} LIKE 'gpu-%'"
    }
