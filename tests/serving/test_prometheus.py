"""Alerts fire when they should and only then, and what rules and dashboard ask for is there: in a real Prometheus that scrapes a
real replica."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from minutely.services.metrics import Status, StatusMetrics
from paramserver.table import Table
from stack.ports import free_ports
from streaming.clock import EventClock
from streaming.join.calibration import ServedCalibration
from streaming.join.metrics import JoinMetrics
from tests.commands import ROOT, missing
from tests.kafka.services import started
from tests.serving.publishing import Publisher, draw, make_pipeline, rank_body
from tests.serving.server import Server
from trainer.prequential import Prequential

PROMETHEUS = ROOT / "configs" / "prometheus"
ALERTS = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((ROOT / "configs/grafana/dashboards/minutely.json").read_text())
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
NAME = re.compile(r"\bminutely_\w+")

# Series as promtool writes them, and the alerts that they raise after ten minutes (and none but these).
CASES: dict[str, tuple[dict[str, str], set[str]]] = {
    "all is well": (
        {
            'up{job="replicas", instance="a"}': "1x40",
            'minutely_ready{replica="a"}': "1x40",
            'minutely_model_state{replica="a", state="stale"}': "0x40",
            'minutely_model_state{replica="a", state="idle"}': "0x40",
            'minutely_pull_failures_total{instance="a", reason="damaged"}': "1x40",
            'minutely_rows_drifted_total{instance="a", table="item"}': "1x40",
            'minutely_sparse_version{replica="a"}': "1+1x40",
            'minutely_sparse_version{replica="b"}': "1+1x40",
            'minutely_log_dropped_total{instance="a", topic="impressions"}': "7x40",
            'minutely_serve_requests_total{instance="a", route="/v1/rank", status="200"}': "0+1000x40",
            'minutely_serve_requests_total{instance="a", route="/v1/rank", status="503"}': "0+1x40",
            'minutely_join_lag{topic="impressions", partition="0"}': "50000-100x40",
            'minutely_join_waiting{partition="0"}': "0x20 1x2 0x20",
            'minutely_join_dead_letters_total{reason="malformed", partition="0"}': "0x20 5x20",
        },
        set(),
    ),
    "a replica is gone": ({'up{job="replicas", instance="a"}': "0x40"}, {"ReplicaDown"}),
    "a trainer is gone": ({'up{job="trainers", instance="a"}': "0x40"}, {"ServiceDown"}),
    "out of service": ({'minutely_ready{replica="a"}': "0x40"}, {"ReplicaNotReady"}),
    "stale": ({'minutely_model_state{replica="a", state="stale"}': "1x40"}, {"ModelStale"}),
    "idle": ({'minutely_model_state{replica="a", state="idle"}': "1x40"}, {"NothingHappens"}),
    "pulls fail": ({'minutely_pull_failures_total{instance="a", reason="damaged"}': "0+2x40"}, {"PullsFail"}),
    "one is behind": (
        {'minutely_sparse_version{replica="a"}': "1+1x40", 'minutely_sparse_version{replica="b"}': "1x40"},
        {"ReplicasDiffer"},
    ),
    "drifted": ({'minutely_rows_drifted_total{instance="a", table="item"}': "0x20 1x20"}, {"RowsDrifted"}),
    "late": (
        {
            'minutely_decided_to_servable_seconds_bucket{le="90.0"}': "0+90x40",
            'minutely_decided_to_servable_seconds_bucket{le="120.0"}': "0+100x40",
            'minutely_decided_to_servable_seconds_bucket{le="+Inf"}': "0+100x40",
        },
        {"ServableLate"},
    ),
    "not logged": (
        {'minutely_log_dropped_total{instance="a", topic="impressions"}': "0+1x40"}, {"ImpressionsNotLogged"},
    ),
    "refused": (
        {
            'minutely_serve_requests_total{instance="a", route="/v1/rank", status="200"}': "0+90x40",
            'minutely_serve_requests_total{instance="a", route="/v1/rank", status="503"}': "0+10x40",
        },
        {"RequestsRefused"},
    ),
    "slow": (
        {
            'minutely_serve_seconds_bucket{instance="a", route="/v1/rank", le="0.1"}': "0+90x40",
            'minutely_serve_seconds_bucket{instance="a", route="/v1/rank", le="0.25"}': "0+100x40",
            'minutely_serve_seconds_bucket{instance="a", route="/v1/rank", le="+Inf"}': "0+100x40",
        },
        {"AnswersSlow"},
    ),
    "joiners behind": ({'minutely_join_lag{topic="impressions", partition="0"}': "9000+500x40"}, {"JoinerBehind"}),
    "a partition waits": ({'minutely_join_waiting{partition="0"}': "1x40"}, {"PartitionWaits"}),
    "of another config": (
        {
            'minutely_join_dead_letters_total{reason="schema", partition="0"}': "0x20 6x20",
            'minutely_join_dead_letters_total{reason="schema", partition="1"}': "0x20 8x20",
        },
        {"RecordsRefused"},
    ),
    "miscalibrated": ({'minutely_join_miscalibrated{label="like"}': "1x40"}, {"Miscalibrated"}),
    "dead letters": ({'minutely_join_dead_letters_total{reason="late", partition="0"}': "0+20x40"}, {"LateRecords"}),
    "left out": (
        {'minutely_train_dead_letters_total{instance="train", reason="not_finite"}': "0+1x40"}, {"ExamplesLeftOut"},
    ),
    "left out of the archive": (
        {'minutely_archive_dead_letters_total{instance="archive", reason="malformed"}': "0+1x40"}, {"ExamplesLeftOut"},
    ),
}  # fmt: skip


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        missing(f"{name} (Debian: apt-get install prometheus)")
    assert found is not None
    return found


def test_every_alert_is_explained_and_tested() -> None:
    names = {rule["alert"] for rule in ALERTS}
    assert names == set().union(*(raised for _, raised in CASES.values()))
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(names)


def test_alerts_are_raised_when_they_should(tmp_path: Path) -> None:
    promtool = _program("promtool")
    tests = [
        {
            "interval": "1m",
            "name": name,
            "input_series": [{"series": series, "values": values} for series, values in given.items()],
            "promql_expr_test": [
                {
                    "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                    "eval_time": "35m",
                    "exp_samples": [
                        {"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(raised)
                    ],
                }
            ],
        }
        for name, (given, raised) in CASES.items()
    ]  # fmt: skip
    file = tmp_path / "tests.yml"
    file.write_text(
        yaml.safe_dump({"rule_files": [str(PROMETHEUS / "alerts.yml")], "evaluation_interval": "1m", "tests": tests})
    )
    for command in (["check", "config", str(PROMETHEUS / "prometheus.yml")], ["test", "rules", str(file)]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def _names(text: str) -> set[str]:
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


class _Nobody:
    members: dict[int, Any] = {}
    served = ServedCalibration(make_pipeline().labels, (0.8, 1.25), print, print)


@pytest.fixture(scope="module")
def others_names() -> set[str]:
    """What joiners and trainers export: the families of their collectors."""
    families = list(JoinMetrics(_Nobody()).collect())  # type: ignore[arg-type]
    status = Status(prequential=Prequential(make_pipeline().labels), tables={"item": Table(2)})
    families += StatusMetrics("train", "versions", status, EventClock(0)).collect()
    families += StatusMetrics("archive", "commits", Status(), EventClock(0)).collect()
    return {name for family in families for name in (family.name, f"{family.name}_total")}


def test_a_real_prometheus_finds_everything(tmp_path: Path, others_names: set[str]) -> None:
    prometheus = _program("prometheus")
    publisher = Publisher(make_pipeline(), tmp_path / "deltas")
    publisher.next(time.time_ns() // 1_000_000)
    server = Server(publisher.pipeline, tmp_path / "deltas", tmp_path / "server")
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(PROMETHEUS / "alerts.yml")]
    config["scrape_configs"] = [{"job_name": "replicas", "static_configs": [{"targets": [f"127.0.0.1:{server.port}"]}]}]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_ports(1)[0]

    def ask(path: str, **query: str) -> Any:
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())["data"]

    with started(server.process):
        server.wait()
        assert server.ask("POST", "/v1/rank", rank_body(draw(publisher.random, 3), [1, 2, 3]))[0] == 200
        exported = _names(server.ask("GET", "/metrics")[1])
        wanted = {name for text in (*QUERIES, *(rule["expr"] for rule in ALERTS)) for name in NAME.findall(text)}
        assert wanted <= exported | others_names, "rules and dashboard ask for nothing that no service has"
        command = [prometheus, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
        running = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    if ask("query", query="rate(minutely_serve_candidates_total[5m])")["result"]:
                        break
                except OSError:
                    pass
                assert time.monotonic() < until, "nothing was scraped"
                time.sleep(0.25)
            for query in QUERIES:
                found = ask("query", query=query)["result"]
                if not any(name in others_names for name in NAME.findall(query)):
                    assert found or "histogram_quantile" in query, f"{query}: nothing"
            rules = ask("rules")["groups"][0]["rules"]
            assert len(rules) == len(ALERTS) and all(rule["health"] in ("ok", "unknown") for rule in rules)
        finally:
            running.terminate()
            running.wait(20)
