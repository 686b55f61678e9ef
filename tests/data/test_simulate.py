"""The simulated marketplace: its truth is worth knowing, its text and its sequences both give it away."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tests.oracles.marketplace import probabilities, true_probabilities

from allrec.data import Dataset, SimulationConfig, prepare, simulate
from allrec.data.simulator.market import NONE, Users, WeightedGroups, make_market
from allrec.data.simulator.simulate import LAST_WEEKS_FROM, brand_name, make_users
from allrec.errors import InputError
from allrec.files import sha256_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(tmp_path_factory.mktemp("simulation") / "market")


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return prepare(folder, folder.parent / "dataset")


def hit_rate(dataset: Dataset, scores: np.ndarray, split: str = "test") -> float:
    """HR@1 on the paper's protocol, ties against us."""
    targets = dataset.targets[split]
    is_target = targets.candidates["paper"] == targets.items[:, None]
    return float(((scores >= scores[is_target][:, None]).sum(axis=1) == 1).mean())


def popularity(dataset: Dataset) -> np.ndarray:
    return dataset.train_counts()[dataset.targets["test"].candidates["paper"]]


def test_size_and_shape(dataset: Dataset) -> None:
    assert (dataset.num_users, dataset.num_items) == (2_000, 1_000)
    assert 18_000 < dataset.num_interactions < 22_000
    assert None not in dataset.titles
    num_words = np.array([len(title.split()) for title in dataset.titles if title])
    assert num_words.min() >= 3
    assert num_words.max() <= 12
    assert len(np.unique(num_words)) > 5
    assert len(set(dataset.titles)) > 0.99 * dataset.num_items


def test_cold_repeated_and_short_ones_occur(dataset: Dataset) -> None:
    counts = dataset.train_counts()
    test = dataset.targets["test"]
    assert 0.1 < (counts == 0).mean() < 0.25
    assert 0.05 < (counts[test.items] == 0).mean() < 0.2
    repeats = [item in dataset.history(user)[:-1] for user, item in zip(test.users, test.items, strict=True)]
    assert 0.1 < np.mean(repeats) < 0.5
    assert 0 < (np.diff(dataset.offsets) < 3).mean() < 0.1


def test_popularity_falls_by_a_power(dataset: Dataset) -> None:
    counts = np.sort(dataset.train_counts())[::-1]
    assert counts[:100].sum() > 0.3 * counts.sum()


@pytest.mark.parametrize("split", ["valid", "test"])
def test_oracle_finds_most_targets(folder: Path, dataset: Dataset, split: str) -> None:
    true = true_probabilities(folder, dataset, split)
    assert true.min() >= 0
    assert true.sum(axis=1).max() <= 1 + 1e-9
    assert hit_rate(dataset, true, split) > 0.5


def test_oracle_is_above_popularity_by_far(folder: Path, dataset: Dataset) -> None:
    assert hit_rate(dataset, true_probabilities(folder, dataset)) > hit_rate(dataset, popularity(dataset)) + 0.3


def test_words_alone_beat_popularity(dataset: Dataset) -> None:
    """Cosine of a candidate's rare words with those of the history."""
    vectors = word_vectors([text or "" for text in dataset.texts])
    targets = dataset.targets["test"]
    profiles = np.stack([vectors[dataset.history(user)[:-1]].sum(axis=0) for user in targets.users])
    scores = np.einsum("uw,unw->un", profiles, vectors[targets.candidates["paper"]])
    assert hit_rate(dataset, scores) > hit_rate(dataset, popularity(dataset)) + 0.15


def word_vectors(texts: list[str]) -> np.ndarray:
    words = sorted({word for text in texts for word in re.findall(r"\w+", text.lower())})
    number = {word: place for place, word in enumerate(words)}
    vectors = np.zeros((len(texts), len(words)), np.float32)
    for row, text in enumerate(texts):
        vectors[row, [number[word] for word in re.findall(r"\w+", text.lower())]] = 1
    vectors *= np.log(len(texts) / vectors.sum(axis=0))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_co_occurrence_alone_beats_popularity(dataset: Dataset) -> None:
    """Cosine of the candidate's buyers with the buyers of the user's training items."""
    bought = np.zeros((dataset.num_users, dataset.num_items), np.float32)
    for user in range(dataset.num_users):
        bought[user, dataset.train_history(user)] = 1
    normalized = bought / np.maximum(np.linalg.norm(bought, axis=0), 1)
    similarity = normalized.T @ normalized
    targets = dataset.targets["test"]
    scores = (bought[targets.users] @ similarity)[np.arange(len(targets))[:, None], targets.candidates["paper"]]
    assert hit_rate(dataset, scores) > hit_rate(dataset, popularity(dataset)) + 0.15


def test_probabilities_of_the_whole_catalogue_sum_to_one() -> None:
    market = make_market(SimulationConfig(num_items=120, num_users=30))
    users = make_users(0, market)
    rng = np.random.default_rng(0)
    sold = np.flatnonzero((market.items.weights > 0) & ~market.items.is_new)
    histories = rng.choice(sold, size=(30, 5))
    histories[::3, 3:] = NONE
    everything = np.tile(np.arange(120), (30, 1))
    for is_late in (False, True):
        true = probabilities(market, users, histories, everything, np.full(30, is_late))
        np.testing.assert_allclose(true.sum(axis=1), 1.0)
        assert (true[:, market.items.is_new] > 0).any() == is_late


def test_probabilities_are_what_is_drawn() -> None:
    market = make_market(SimulationConfig(num_items=64, num_users=1, seed=3))
    one = make_users(0, market)
    num_draws = 60_000
    users = Users(*(np.repeat(table, num_draws, axis=0) for table in one))
    last = int(np.flatnonzero((market.items.weights > 0) & ~market.items.is_new)[0])
    rng = np.random.default_rng(0)
    kinds = market.draw_kinds(users, np.full(num_draws, market.items.kinds[last]), rng)
    drawn = np.bincount(market.draw_items(users, kinds, market.late, rng), minlength=64) / num_draws
    everything = np.arange(64)[None]
    mixed = probabilities(market, one, np.array([[last]]), everything, np.ones(1, bool))[0]
    # a repeat of a history of one item is that item; what is left is the fresh choice
    share = market.config.repeat_share
    fresh = (mixed - share * (np.arange(64) == last)) / (1 - share)
    assert np.abs(drawn - fresh).max() < 5 * np.sqrt(0.25 / num_draws)


def test_new_items_are_never_in_training(folder: Path, dataset: Dataset) -> None:
    market = make_market(SimulationConfig(**json.loads((folder / "simulation.json").read_text())))
    assert (dataset.train_counts()[market.items.is_new] == 0).all()
    assert market.items.is_new[dataset.targets["test"].items].any()
    assert market.items.is_new[dataset.targets["valid"].items].any()


def test_last_two_interactions_are_in_the_last_weeks(folder: Path) -> None:
    lines = (folder / "interactions.csv").read_text().splitlines()[1:]
    users: dict[str, list[int]] = {}
    for line in lines:
        user, _, time = line.split(",")
        users.setdefault(user, []).append(int(time))
    for times in users.values():
        assert times == sorted(times)
        num_late = sum(time >= LAST_WEEKS_FROM for time in times)
        assert num_late == (2 if len(times) >= 3 else 0)


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    config = SimulationConfig(num_users=50, num_items=40)
    first, again = (simulate(tmp_path / name, config) for name in "ab")
    other = simulate(tmp_path / "c", SimulationConfig(num_users=50, num_items=40, seed=1))
    for name in ("interactions.csv", "items.jsonl"):
        assert sha256_file(first / name) == sha256_file(again / name) != sha256_file(other / name)


def test_chunks_of_users_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(simulate.__globals__, "CHUNK_USERS", 40)
    folder = simulate(tmp_path / "market", SimulationConfig(num_users=100, num_items=60))
    dataset = prepare(folder, tmp_path / "dataset")
    assert dataset.num_users == 100
    assert hit_rate(dataset, true_probabilities(folder, dataset)) > 0.4


def test_smallest_market(tmp_path: Path) -> None:
    config = SimulationConfig(num_users=1, num_items=8, mean_interactions=1)
    assert prepare(simulate(tmp_path / "market", config), tmp_path / "dataset").num_items == 8


def test_oracle_refuses_another_data_set(folder: Path, tmp_path: Path) -> None:
    other = simulate(tmp_path / "market", SimulationConfig(num_users=20, num_items=40))
    dataset = prepare(other, tmp_path / "dataset")
    with pytest.raises(InputError, match="has 20 users and 40 items, expected 2000 and 1000 of this simulation"):
        true_probabilities(folder, dataset)


def test_simulation_leaves_other_folders_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(InputError, match="is no simulated marketplace; it is left as it is"):
        simulate(tmp_path / "mine")


def test_more_cold_items_than_items() -> None:
    with pytest.raises(ValueError, match="are more than all items; lower one"):
        SimulationConfig(new_share=0.7, unsold_share=0.4)


def test_brand_names_differ() -> None:
    assert len({brand_name(number) for number in range(30_000)}) == 30_000


def test_weighted_groups_draw_by_weight() -> None:
    groups = WeightedGroups(np.array([0, 1, 0, 1, 2]), np.array([1.0, 0.0, 3.0, 5.0, 0.0]), 4)
    drawn = groups.draw(np.repeat([0, 1, 2, 3], 20_000), np.random.default_rng(0)).reshape(4, -1)
    assert abs((drawn[0] == 2).mean() - 3 / (1 + 3)) < 0.02
    assert set(drawn[0].tolist()) == {0, 2}
    assert set(drawn[1].tolist()) == {3}
    assert set(drawn[2:].ravel().tolist()) == {NONE}
