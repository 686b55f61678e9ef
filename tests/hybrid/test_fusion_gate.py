"""Whether the language model joins fusion: the recipe's own ``least_gain``, from training to what is served."""

from zlib import crc32

import numpy as np
import pytest

from allrec.config import load_recipe
from allrec.data import PrepareConfig, SimulationConfig, prepare, simulate
from allrec.files import read_json
from allrec.recommender import AllRec
from allrec.runs.trained_model import TrainedModel
from encoders import save_encoder
from tiny import save_tiny
from worlds import FUSED, QUICK

GATED = (
    *(key for key in FUSED if not key.startswith(("fusion.least_gain", "fusion.with_llm.loop.epochs"))),
    'evaluation.protocols=["paper"]',
    "evaluation.llm_users=0",
    "evaluation.llm_valid_users=0",
    "fusion.num_ranked=20",
    "fusion.llm_users=1000",
    "fusion.with_llm.batch_size=32",
    "fusion.training.loop.epochs=30",
    "fusion.training.batch_size=32",
)
"""The gate is the recipe's own; all users are read, and fitted on in batches that suit so few."""
SURE = 4.0
"""Standard deviations of its noise by which the informed language model scores the next item higher."""


def train(folder, lead):
    """A run whose language model gives noise, and ``lead`` more to the item that came next; its recipe's gate."""
    simulate(folder / "source", SimulationConfig(num_users=400, num_items=60, mean_interactions=6))
    dataset = prepare(folder / "source", folder / "dataset", config=PrepareConfig(name="world"))
    recipe = load_recipe("a-llmrec", (*QUICK, *GATED, f'text.name="{save_encoder(folder / "encoder")}"'))
    assert recipe.fusion.least_gain == 3.0
    following = {}
    for targets in dataset.targets.values():
        for user, place, item in zip(targets.users, targets.positions, targets.items, strict=True):
            history = dataset.items[dataset.offsets[user] :][:place]
            following.setdefault(tuple(history.tolist()), set()).add(int(item))

    def scores(self, histories, candidates, name="llm", cache=None):
        rows = []
        for history, row in zip(histories, candidates, strict=True):
            rng = np.random.default_rng(crc32(np.concatenate([history, row]).astype(np.int64).tobytes()))
            is_next = np.isin(row, list(following.get(tuple(history.tolist()), ())))
            rows.append(rng.normal(size=len(row)) + lead * is_next)
        return np.where(candidates >= 0, np.array(rows), -np.inf).astype(np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainedModel, "llm_scores", scores)
        system = AllRec.train(
            dataset, run=folder / "run", recipe=recipe, llm=str(save_tiny(folder / "llm")), cache=folder / "cache"
        )
        yield system, dataset


@pytest.fixture(scope="module")
def informed(tmp_path_factory):
    yield from train(tmp_path_factory.mktemp("informed"), SURE)


@pytest.fixture(scope="module")
def guessing(tmp_path_factory):
    yield from train(tmp_path_factory.mktemp("guessing"), 0.0)


def hit_rates(system):
    rows = [row for row in system.run.metrics()["results"] if (row["split"], row["segment"]) == ("test", "all")]
    return {row["scorer"]: row["HR@1"] for row in rows}


def test_a_language_model_that_knows_the_next_item_is_kept_and_decides(informed):
    system, dataset = informed
    assert system.model.fused_ranker.additions["lists"] is not None
    rates = hit_rates(system)
    assert rates["allround"] > rates["fusion"] + 0.2
    targets = dataset.targets["test"]
    user, place, listed = targets.users[0], targets.positions[0], targets.candidates["paper"][0]
    history = [dataset.item_ids[item] for item in dataset.items[dataset.offsets[user] :][:place]]
    found = system.rank([dataset.item_ids[item] for item in listed if item >= 0], history=history)
    assert found[0].item_id == dataset.item_ids[targets.items[0]]
    assert "llm" in found[0].contributions


def test_a_language_model_that_guesses_is_left_out_of_what_is_measured_and_served(guessing):
    system, dataset = guessing
    folder = system.run.verified_folder("fusion")
    assert read_json(folder / "training.json")["lists-llm"] == []
    assert {scope: one for scope, one in system.model.fused_ranker.additions.items() if one is not None} == {}
    rates = hit_rates(system)
    # It is measured, and equals the fusion that it is left out of.
    assert rates["allround"] == rates["fusion"]
    found = system.rank(dataset.item_ids[:6], user=dataset.user_ids[0])
    assert found == system.rank(dataset.item_ids[:6], user=dataset.user_ids[0], use_llm=False)
