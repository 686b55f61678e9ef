"""Files of operation: every figure that alarms and dashboard ask for is one that the service has."""

import json
import re
from pathlib import Path

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
