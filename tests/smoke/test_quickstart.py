"""``allrec quickstart``, the README's first command, with its smallest settings and a tiny language model."""

import json
import re

import pytest
from tests.remedies import advises, program
from typer.testing import CliRunner

from allrec.cli.commands import app
from allrec.data import load_dataset
from encoders import save_encoder
from tiny import save_tiny

SMALL = (
    "backbone.loop.epochs=2",
    "backbone.model.dim=16",
    "text.max_tokens=16",
    "alignment.loop.epochs=1",
    "soft_tokens.loop.epochs=1",
    "soft_tokens.warm_up.epochs=1",
    "soft_tokens.sample=20",
    "prompt.max_title_tokens=8",
    "prompt.max_history=3",
    "evaluation.llm_users=20",
    "evaluation.llm_valid_users=10",
    "evaluation.ablation_users=10",
)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """Calls the command twice, and returns its folder with what it said each time."""
    folder = tmp_path_factory.mktemp("quickstart")
    sets = (*SMALL, f'text.name="{save_encoder(folder / "encoder")}"')
    options = ["--out", folder / "demo", "--users", 50, "--seed", 3, "--llm", save_tiny(folder / "llm")]
    options += [part for text in sets for part in ("--set", text)]
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLREC_CACHE", str(folder / "cache"))
        for _ in range(2):
            result = CliRunner().invoke(app, ["quickstart", *map(str, options)])
            assert result.exit_code == 0, result.output
            said.append(result.stdout)
    return folder / "demo", said


def test_it_simulates_prepares_trains_and_evaluates(quickstart):
    folder, (said, _) = quickstart
    assert "A simulated marketplace of 50 users" in said
    assert load_dataset(folder / "dataset").num_users == 50
    metrics = json.loads((folder / "run" / "metrics.json").read_text())
    assert {"cf", "joint", "llm"} <= {row["scorer"] for row in metrics["results"]}
    assert metrics["recipe"] == "quickstart"
    assert metrics["seed"] == 3
    assert re.search(r"chance\W+0\.0500", said)


def test_it_recommends_to_three_users_and_writes_the_page(quickstart):
    folder, (said, _) = quickstart
    dataset = load_dataset(folder / "dataset")
    users = [dataset.user_ids[user] for user in dataset.targets["test"].users[:3]]
    assert re.findall(r"^(\S+), \d+ interactions, the latest:$", said, re.MULTILINE) == users
    assert (folder / "report.html").is_file()
    advises(said, "\nMore: allrec recommend {} --history ID,ID   (ids stand in {})")
    some = ",".join(dataset.item_ids[:2])
    assert json.loads(program("recommend", folder / "run", "--history", some, "--no-llm", "--json"))


def test_called_again_it_goes_on_with_what_is_there_and_says_the_same(quickstart):
    said = [[line for line in text.splitlines() if not line.startswith("Time:")] for text in quickstart[1]]
    assert said[0] == said[1]
