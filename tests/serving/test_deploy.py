"""Files of operation: every figure that alarms and dashboard ask for is one that the service has."""

import json
import re
import shutil
import subprocess
import sys
import typing
import warnings
from enum import Enum, EnumType
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from beartype.door import is_bearable

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


def lost(given, kept, place=""):
    """Paths of what was given and not kept."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [path for name in given for path in lost(given[name], kept.get(name), f"{place}/{name}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [path for at, pair in enumerate(zip(given, kept, strict=True)) for path in lost(*pair, f"{place}/{at}")]
    return [] if given == kept else [place]


def is_of(value, hint):
    """Whether a value is of a kind; a member of an enumeration may stand there as its text."""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if isinstance(kind, EnumType)]
    return is_bearable(value, hint) or any(value in [member.value for member in kind] for kind in kinds)


def wrong(value, place=""):
    """Paths of values that are not of the kind which Grafana's class says."""
    if isinstance(value, (dict, list)):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return [path for name, one in inner for path in wrong(one, f"{place}/{name}")]
    if isinstance(value, Enum) or not type(value).__module__.startswith("grafana_foundation_sdk"):
        return []
    hints = typing.get_type_hints(type(value))
    bad = [f"{place}/{name}" for name, one in vars(value).items() if not is_of(one, hints[name])]
    return bad + wrong(vars(value), place)


@pytest.fixture
def read_by_grafana():
    """Reads a dashboard into Grafana's own classes; paths of what they do not know, and of what is of another kind."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a newer form of dashboards is on its way
        from grafana_foundation_sdk.cog.encoder import JSONEncoder
        from grafana_foundation_sdk.cog.plugins import register_default_plugins
        from grafana_foundation_sdk.models.dashboard import Dashboard
    register_default_plugins()

    def read(dashboard):
        known = Dashboard.from_json(dashboard)
        return lost(dashboard, json.loads(JSONEncoder().encode(known))) + wrong(known)

    return read


def test_the_dashboard_is_one_that_grafana_knows(read_by_grafana):
    """Grafana publishes its dashboards' schema as classes of several languages, not as JSON Schema."""
    text = (ROOT / "deploy" / "dashboard.json").read_text()
    assert read_by_grafana(json.loads(text)) == []
    for right, broken, path in (
        ('"legendFormat"', '"legend"', "/panels/0/targets/0/legend"),
        ('"schemaVersion": 39', '"schemaVersion": "39"', "/schema_version"),
        ('"x": 0', '"x": "left"', "/panels/0/grid_pos/x"),
        ('"type": "datasource"', '"type": "data source"', "/templating/list_val/0/type_val"),
    ):
        assert right in text
        assert path in read_by_grafana(json.loads(text.replace(right, broken)))


def test_the_panels_of_the_dashboard_lie_side_by_side():
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
