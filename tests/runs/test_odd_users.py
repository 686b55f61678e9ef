"""A user who has interacted with every item, or all but a few, stops nobody: a run trains, evaluates and recommends."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from tests.encoders import save_encoder
from tests.tiny import save_tiny
from tests.worlds import FUSED, QUICK, READ_OUT
from typer.testing import CliRunner

from allrec.cli.commands import app
from allrec.config import load_recipe
from allrec.data import Dataset, prepare
from allrec.errors import InputWarning
from allrec.recommender import AllRec

NUM_ITEMS = 24
RECIPES = {"plain": QUICK, "fused": (*QUICK, *FUSED), "read-out": (*QUICK, *READ_OUT)}


def make_dataset(folder: Path, histories: dict[str, list[int]]) -> Dataset:
    rows = [f"{user},i{item},{time}" for user, items in histories.items() for time, item in enumerate(items)]
    (folder / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    titles = [f"i{item},thing {item}" for item in range(NUM_ITEMS)]
    (folder / "things.csv").write_text("\n".join(["item_id,title", *titles]))
    return prepare(folder / "log.csv", folder / "dataset", items=folder / "things.csv")


def usual(num_users: int = 40) -> dict[str, list[int]]:
    rng = np.random.default_rng(0)
    return {f"u{user}": rng.choice(NUM_ITEMS, 6, replace=False).tolist() for user in range(num_users)}


def trained(folder: Path, dataset: Dataset, sets: tuple[str, ...]) -> tuple[AllRec, list[str]]:
    recipe = load_recipe("a-llmrec", (*sets, f'text.name="{save_encoder(folder / "encoder")}"'))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", InputWarning)
        system = AllRec.train(
            dataset, run=folder / "run", recipe=recipe, llm=str(save_tiny(folder / "llm")), cache=folder / "cache"
        )
    return system, [str(one.message) for one in said if issubclass(one.category, InputWarning)]


@pytest.mark.parametrize("kind", sorted(RECIPES))
@pytest.mark.parametrize("num_left", [0, 1, 3])
def test_one_odd_user_stops_nobody(tmp_path: Path, kind: str, num_left: int) -> None:
    # Every item in training, and two more targets.
    odd = [*range(NUM_ITEMS - num_left), 0, 1]
    system, said = trained(tmp_path, make_dataset(tmp_path, usual() | {"odd": odd}), RECIPES[kind])
    expected = [f"user 'odd' has interacted with all {NUM_ITEMS} items and is left out"] if num_left == 0 else []
    assert sorted({text.partition(" where")[0] for text in said}) == expected
    found = system.recommend(user="odd", k=5)
    assert {item.item_id for item in found} == {f"i{item}" for item in range(NUM_ITEMS - num_left, NUM_ITEMS)}
    assert len(system.recommend(user="odd", k=5, with_history=True)) == 5


def test_the_program_says_that_nothing_is_left_and_what_helps(tmp_path: Path) -> None:
    trained(tmp_path, make_dataset(tmp_path, usual() | {"odd": [*range(NUM_ITEMS), 0, 1]}), QUICK)
    arguments = ["recommend", str(tmp_path / "run"), "--user", "odd", "--no-llm"]
    assert "Nothing is left to recommend: every item is in the history" in CliRunner().invoke(app, arguments).stdout
    assert "thing" in CliRunner().invoke(app, [*arguments, "--with-history"]).stdout


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_a_world_in_which_everybody_has_everything_trains(tmp_path: Path, kind: str) -> None:
    histories = {f"u{user}": [*range(NUM_ITEMS), 0, 1] for user in range(20)}
    system, said = trained(tmp_path, make_dataset(tmp_path, histories), RECIPES[kind])
    assert {text.partition(":")[0] for text in said} == {f"every user has interacted with all {NUM_ITEMS} items"}
    assert system.recommend(user="u0", k=5) == []
