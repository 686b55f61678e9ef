"""``allrec quickstart``, the README's first command, with its smallest settings and a tiny language model."""

import json
import re

import pytest
from tests.remedies import advises, program

from allrec.data import load_dataset
from program import call

SMALL = ("soft_tokens.warm_up.epochs=1", "evaluation.ablation_users=10")


@pytest.fixture(scope="module")
def quickstart(small_world, tmp_path_factory):
    """Calls the command twice, and returns its folder with what it printed each time."""
    out = tmp_path_factory.mktemp("quickstart") / "demo"
    options = ["--out", out, "--users", 50, "--seed", 3, "--llm", small_world.llm]
    options += [part for text in small_world.sets(*SMALL) for part in ("--set", text)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLREC_CACHE", str(small_world.cache))
        return out, [call("quickstart", *options) for _ in range(2)]


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
    advises(said, "\nMore: allrec recommend {} --history ID,ID   (ids are in {})")
    some = ",".join(dataset.item_ids[:2])
    assert json.loads(program("recommend", folder / "run", "--history", some, "--no-llm", "--json"))


def test_called_again_it_goes_on_with_what_is_there_and_says_the_same(quickstart):
    said = [[line for line in text.splitlines() if not line.startswith("Time:")] for text in quickstart[1]]
    assert said[0] == said[1]
