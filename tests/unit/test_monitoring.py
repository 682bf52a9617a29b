"""Alerts and dashboard query metrics that a worker or the gateway exposes."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry

from inference_service.core.errors import COMMAND_LINE_CODES, ErrorCode
from inference_service.core.progress import STAGES
from inference_service.core.settings import Settings
from inference_service.gateway.observation import Observation
from inference_service.jobs.database import connect
from inference_service.worker.metrics import Metrics

REPOSITORY = Path(__file__).parents[2]
MONITORING = REPOSITORY / "docker" / "monitoring"
ALERTS = MONITORING / "alerts.yml"
DASHBOARD = MONITORING / "grafana" / "dashboards" / "inference.json"
SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
# Series that Prometheus creates.
BUILT_IN = {"up", "ALERTS"}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@pytest.fixture(scope="module")
def registry() -> CollectorRegistry:
    return Metrics("cpu-1@host", connect(Settings())).registry


@pytest.fixture(scope="module")
def exposed(registry: CollectorRegistry) -> dict[str, set[str]]:
    """The series names of each metric."""
    families = [*registry.collect(), *Observation().registry.collect()]
    return {family.name: {family.name + suffix for suffix in SUFFIXES[family.type]} for family in families}


def rules() -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, list[dict[str, str]]]]:
    return list(json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"])


def dashboard_expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def names_in(expression: str) -> Iterator[str]:
    """The metrics that an expression queries."""
    found: list[str] = []

    def note(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node.name or "")
        return True

    promql_parser.walk(promql_parser.parse(expression), note)
    yield from found


def test_every_queried_metric_is_exposed(exposed: dict[str, set[str]]) -> None:
    known = BUILT_IN.union(*exposed.values())
    for expression in [*dashboard_expressions(), *(rule["expr"] for rule in rules())]:
        names = set(names_in(expression))
        assert names, expression
        assert names <= known, expression


def test_every_exposed_metric_is_on_the_dashboard(exposed: dict[str, set[str]]) -> None:
    names = {name for expression in dashboard_expressions() for name in names_in(expression)}
    assert [metric for metric, series in exposed.items() if not series & names] == []


def test_every_exposed_metric_is_documented(exposed: dict[str, set[str]]) -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(inference_\w+)[`{]", page))
    assert [metric for metric, series in exposed.items() if not {metric, *series} & documented] == []


def test_every_counter_series_starts_at_zero(registry: CollectorRegistry) -> None:
    for code in ErrorCode:
        state = "cancelled" if code == ErrorCode.CANCELLED else "failed"
        value = registry.get_sample_value("inference_jobs_finished_total", {"state": state, "code": code})
        assert value == (None if code in COMMAND_LINE_CODES else 0)
    assert registry.get_sample_value("inference_jobs_finished_total", {"state": "succeeded", "code": ""}) == 0
    for stage in STAGES:
        assert registry.get_sample_value("inference_stage_duration_seconds_count", {"stage": stage}) == 0


def test_alerts_on_failures_name_real_codes() -> None:
    (expression,) = (rule["expr"] for rule in rules() if rule.get("alert") == "ServiceErrors")
    (pattern,) = re.findall(r'code=~"([^"]+)"', expression)
    for part in pattern.split("|"):
        assert any(re.fullmatch(part, code) for code in ErrorCode), part


def test_every_alert_has_a_summary_and_a_description() -> None:
    for rule in rules():
        assert {"alert", "expr", "labels", "annotations"} <= set(rule)
        assert set(rule["annotations"]) == {"summary", "description"}


def test_panels_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]]
    taken = [
        (place["x"] + column, place["y"] + row)
        for place in places
        for column in range(place["w"])
        for row in range(place["h"])
    ]
    assert len(taken) == len(set(taken))


def test_every_alert_is_documented() -> None:
    page = (REPOSITORY / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in rules() if f"| `{rule['alert']}` |" not in page] == []


def test_the_dashboard_finds_its_data_source() -> None:
    source = yaml.safe_load((MONITORING / "grafana" / "datasources" / "prometheus.yml").read_text(encoding="utf-8"))
    (uid,) = (entry["uid"] for entry in source["datasources"])
    text = DASHBOARD.read_text(encoding="utf-8")
    assert set(re.findall(r'"type": "prometheus",\s*"uid": "([^"]*)"', text)) == {uid}


def test_workers_and_gateway_of_compose_are_scraped() -> None:
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    for part in ("cpu", "gpu", "gateway"):
        text = (REPOSITORY / f"docker-compose.{part}.yml").read_text(encoding="utf-8")
        name, service = next(iter(yaml.safe_load(text)["services"].items()))
        ((job, by_name),) = ((job, each) for job in jobs for each in job["dns_sd_configs"] if name in each["names"])
        assert name.startswith(job["job_name"])
        assert service["environment"]["METRICS_PORT"] == str(by_name["port"])


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "--syntax-only", MONITORING / "prometheus.yml"),
        ("check", "rules", ALERTS),
        ("test", "rules", Path(__file__).with_name("alerts_test.yml")),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_accepts_the_configuration(arguments: tuple[str | Path, ...]) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
