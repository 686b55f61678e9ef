"""Files of operation: every figure that alarms and dashboard ask for is one that the service has."""

import json
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from allrec.serving.monitoring import Figures

ROOT = Path(__file__).parents[2]
FIGURE = re.compile(r"\ballrec_[a-z_]+")


def names():
    figures = Figures()
    figures.seconds.labels("r", "200")
    figures.step.labels("s")
    for metric in (figures.kept, figures.ranked, figures.model, figures.answers, figures.llm, figures.items):
        metric.labels("x")
    return {sample.name for metric in figures.registry.collect() for sample in metric.samples}


def test_alarms_ask_for_figures_that_exist():
    rules = yaml.safe_load((ROOT / "deploy" / "alarms.yml").read_text())["groups"][0]["rules"]
    asked = {name for rule in rules for name in FIGURE.findall(rule["expr"])}
    assert len(asked) >= 6
    assert asked <= names()
    documented = (ROOT / "docs" / "operations.md").read_text()
    assert all(rule["alert"] in documented for rule in rules)


def test_the_dashboard_asks_for_figures_that_exist():
    dashboard = json.loads((ROOT / "deploy" / "dashboard.json").read_text())
    asked = {
        name for panel in dashboard["panels"] for target in panel["targets"] for name in FIGURE.findall(target["expr"])
    }
    assert len(asked) >= 10
    assert asked <= names()


def test_compose_names_files_and_a_command_that_exist():
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    mounted = [volume.split(":")[0] for volume in services["prometheus"]["volumes"]]
    assert mounted
    assert all((ROOT / path).is_file() for path in mounted)
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    (target,) = scraped["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target.partition(":")[0] in services
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def promtool(*arguments):
    if shutil.which("promtool") is None:
        pytest.skip("no promtool here: apt-get install prometheus")
    run("promtool", *arguments)


def test_compose_is_as_its_schema_says():
    run(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")


def test_prometheus_takes_its_configuration_and_rules():
    promtool("check", "config", "deploy/prometheus.yml")
    promtool("check", "rules", "deploy/alarms.yml")


def test_each_alarm_rings_when_it_should_and_is_silent_when_it_should_be():
    tests = yaml.safe_load((ROOT / "deploy" / "alarms_test.yml").read_text())["tests"]
    rung = {one["alertname"] for test in tests for one in test["alert_rule_test"] if one.get("exp_alerts")}
    silent = {one["alertname"] for test in tests for one in test["alert_rule_test"] if not one.get("exp_alerts")}
    rules = yaml.safe_load((ROOT / "deploy" / "alarms.yml").read_text())["groups"][0]["rules"]
    assert rung == silent == {rule["alert"] for rule in rules}
    promtool("test", "rules", "deploy/alarms_test.yml")


def test_prometheus_takes_every_question_of_the_dashboard(tmp_path):
    panels = json.loads((ROOT / "deploy" / "dashboard.json").read_text())["panels"]
    asked = [target["expr"].replace("$__rate_interval", "5m") for panel in panels for target in panel["targets"]]
    rules = [{"record": f"asked:{number}", "expr": expr} for number, expr in enumerate(asked)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", tmp_path / "rules.yml")


def test_the_panels_of_the_dashboard_lie_side_by_side():
    """Grafana publishes no schema of its dashboards that a validator reads; this is what it would stumble over."""
    dashboard = json.loads((ROOT / "deploy" / "dashboard.json").read_text())
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(dashboard)
    (source,) = [one["name"] for one in dashboard["templating"]["list"] if one["type"] == "datasource"]
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["title"]
        assert panel["type"] in ("timeseries", "stat", "gauge", "table", "heatmap", "barchart")
        assert panel["datasource"] == {"type": "prometheus", "uid": f"${{{source}}}"}
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    for one, other in combinations([panel["gridPos"] for panel in panels], 2):
        is_apart = [
            one[at] + one[size] <= other[at] or other[at] + other[size] <= one[at]
            for at, size in (("x", "w"), ("y", "h"))
        ]
        assert any(is_apart), (one, other)
