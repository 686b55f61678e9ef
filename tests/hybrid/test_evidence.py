"""Evidence: against a plain writing of each number, the same in every list, and blind to the target."""

import numpy as np
import pytest
import torch
from tests.training.histories import dataset_of

from allrec.backbones.base import Ensemble, freeze
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.errors import InputError
from allrec.hybrid.content import (
    EvidenceConfig,
    TrainingHistories,
    Vocabulary,
    load_content_parts,
    save_content_parts,
    train_content_parts,
)
from allrec.hybrid.features import (
    CONTEXT,
    FREE,
    LATEST,
    STEP_BACK,
    Evidence,
    Learned,
    Scorer,
    collect,
    histories_before,
    histories_of,
    mean_embeddings,
)
from allrec.hybrid.fusion import LLM_EVIDENCE
from allrec.hybrid.ranking import is_in_history, retrieve
from allrec.hybrid.similarity import DAMPING, DenseSpace, Neighbours, Occurrences, WordSpace
from allrec.training.loop import LoopConfig

NUM_ITEMS = 30
SEQUENCES = [np.array([3, 4, 5]), np.array([7, 3, 7]), np.array([], dtype=np.int64), np.arange(25)]
TITLES = [f"brand{item % 3} thing{item % 7}" for item in range(NUM_ITEMS - 1)] + [None]


def make_evidence():
    generator = torch.Generator().manual_seed(0)
    backbone = freeze(SASRec(NUM_ITEMS, SASRecConfig(dim=8, max_length=20), generator))
    vocabulary = Vocabulary.of(TITLES)
    counts = np.arange(NUM_ITEMS) % 5
    offsets, items = np.array([0, 3, 6]), np.array([3, 4, 5, 7, 3, 7])
    return Evidence(
        counts,
        {"cf": Scorer(backbone, backbone.item_embeddings()), "joint": Scorer(backbone, torch.eye(NUM_ITEMS, 8))},
        {
            "text": DenseSpace.of(torch.randn(NUM_ITEMS, 6, generator=generator)),
            "words": WordSpace.of(vocabulary.weigh(TITLES), len(vocabulary)),
            "neighbours": Neighbours.of(offsets, items, NUM_ITEMS),
        },
    )


@pytest.fixture(scope="module")
def evidence():
    return make_evidence()


def values(evidence, features, name):
    return features[:, :, evidence.names.index(name)]


def test_it_names_every_column(evidence):
    names = evidence.names
    assert names[:3] == ["cf", "joint", "text_largest"]
    assert evidence.features(histories_of(SEQUENCES), np.zeros((4, 2), np.int64)).shape == (4, 2, len(names))
    assert {*FREE, *CONTEXT} - set(LLM_EVIDENCE) <= set(names)


def test_scores_are_log_probabilities_over_the_catalogue(evidence):
    everything = np.tile(np.arange(NUM_ITEMS), (4, 1))
    features = evidence.features(histories_of(SEQUENCES), everything)
    for name in ("cf", "joint"):
        np.testing.assert_allclose(np.exp(values(evidence, features, name)).sum(axis=1), np.ones(4), rtol=1e-5)
    user = evidence.scorers["cf"].backbone.encode(torch.tensor([[3, 4, 5]]))
    scores = (user @ evidence.scorers["cf"].items.T)[0].detach().numpy()
    expected = scores - np.log(np.exp(scores).sum())
    np.testing.assert_allclose(values(evidence, features, "cf")[0], expected, atol=1e-5)


def test_similarity_equals_a_plain_writing(evidence):
    candidates = np.array([[0, 5, 9]] * 4)
    features = evidence.features(histories_of(SEQUENCES), candidates)
    unit = evidence.spaces["text"].unit.double().numpy()
    for row, sequence in enumerate(SEQUENCES):
        latest = sequence[::-1][:LATEST]
        weights = STEP_BACK ** np.arange(len(latest))
        for column, candidate in enumerate(candidates[row]):
            cosines = unit[latest] @ unit[candidate]
            got = [values(evidence, features, f"text_{pool}")[row, column] for pool in ("largest", "latest", "mean")]
            expected = [cosines.max(), cosines[0], cosines @ weights / weights.sum()] if len(latest) else [0.0] * 3
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_words_are_compared_by_their_rarity():
    titles = ["red lamp", "red chair", "Red, lamp!", "blue sofa", None, "blue lamp"]
    vocabulary = Vocabulary.of(titles)
    assert vocabulary.words == ["blue", "lamp", "red"]
    rarity = {word: np.log((1 + 6) / (1 + count)) + 1 for word, count in (("red", 3), ("lamp", 3), ("blue", 2))}
    space = WordSpace.of(vocabulary.weigh(titles), len(vocabulary))
    similarity = space.similarity(torch.tensor([[0]]), torch.tensor([[0, 1, 2, 3, 4]]))[0, 0]
    share = rarity["red"] / np.hypot(rarity["red"], rarity["lamp"])
    np.testing.assert_allclose(similarity, [1.0, share, 1.0, 0.0, 0.0], atol=1e-6)


def test_words_of_many_rows_are_compared_as_by_whole_vectors():
    # Items without words, twice the same item, padding, and rows whose candidates share no word with their history.
    titles = ["red lamp", None, "red chair green", "blue sofa", "", "blue lamp red", "sofa chair", "green"]
    vocabulary = Vocabulary.of(titles * 2)
    words = vocabulary.weigh(titles)
    whole = torch.zeros(len(titles), len(vocabulary))
    whose = torch.repeat_interleave(torch.diff(words.offsets, append=torch.tensor([len(words.ids)])))
    whole[whose, words.ids] = words.weights
    rng = np.random.default_rng(0)
    items, candidates = (torch.from_numpy(rng.integers(-1, len(titles), (30, width))) for width in (3, 5))
    items[4], candidates[5] = 1, 1
    items[6], candidates[6] = 3, 7
    similarity = WordSpace.of(words, len(vocabulary)).similarity(items, candidates)
    expected = whole[items.clamp(min=0)] @ whole[candidates.clamp(min=0)].transpose(1, 2)
    torch.testing.assert_close(similarity, expected)
    assert not expected[4:7].any()


def test_no_word_at_all_is_similar_to_nothing():
    vocabulary = Vocabulary.of([None, ""])
    space = WordSpace.of(vocabulary.weigh([None, ""]), len(vocabulary))
    assert space.similarity(torch.tensor([[0, 1]]), torch.tensor([[1, 0, -1]])).tolist() == [[[0.0] * 3] * 2]


def test_a_vocabulary_is_frozen_for_new_titles():
    vocabulary = Vocabulary.of(["red lamp", "red chair", "lamp"])
    words = vocabulary.weigh(["unheard of", "red unheard"])
    assert words.ids.tolist() == [vocabulary.words.index("red")]
    assert words.weights.tolist() == [1.0]
    assert words.offsets.tolist() == [0, 0]


def test_neighbours_are_counted_within_histories():
    pairs = Neighbours.of(np.array([0, 3, 5]), np.array([1, 2, 1, 2, 3]), 5)
    similarity = pairs.similarity(torch.tensor([[1, 2]]), torch.tensor([[1, 2, 3, 4, -1]]))[0]
    counts = np.array([0, 2, 2, 1, 0]) + DAMPING
    # 1 and 2 stand together twice (1 2, 2 1), 1 with itself once, counted from both sides; 2 and 3 once.
    together = {(1, 1): 2, (1, 2): 2, (2, 1): 2, (2, 3): 1}
    expected = [
        [together.get((item, other), 0) / np.sqrt(counts[item] * counts[other]) for other in range(1, 5)]
        for item in (1, 2)
    ]
    np.testing.assert_allclose(similarity[:, :4], expected, rtol=1e-6)


def test_what_stands_in_the_history(evidence):
    features = evidence.features(histories_of(SEQUENCES), np.array([[7, 3, 4, 24]] * 4))
    assert values(evidence, features, "in_history")[:3].tolist() == [[0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(values(evidence, features, "times_in_history")[1], np.log1p([2, 1, 0, 0]), rtol=1e-6)
    np.testing.assert_allclose(values(evidence, features, "recency_in_history")[1], [1, 1 / 2, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(values(evidence, features, "history_length")[3], np.log1p([25] * 4), rtol=1e-6)
    np.testing.assert_allclose(values(evidence, features, "log_count")[0], np.log1p([2, 3, 4, 4]), rtol=1e-6)


def test_a_value_does_not_depend_on_the_list(evidence):
    histories = histories_of(SEQUENCES)
    everything = evidence.features(histories, np.tile(np.arange(NUM_ITEMS), (4, 1)))
    few = evidence.features(histories, np.array([[9, -1, 2]] * 4))
    np.testing.assert_allclose(few[:, [0, 2]], everything[:, [9, 2]], atol=1e-5)
    assert not few[:, 1].any()


def test_chunks_change_nothing(evidence, monkeypatch):
    histories, candidates = histories_of(SEQUENCES), np.array([[9, 1, 2]] * 4)
    whole = evidence.features(histories, candidates)
    monkeypatch.setattr("allrec.hybrid.features.CELLS", 1)
    monkeypatch.setattr("allrec.hybrid.retrieval.CELLS", 1)
    monkeypatch.setattr("allrec.hybrid.retrieval.QUERIES", 1)
    np.testing.assert_allclose(evidence.features(histories, candidates), whole, atol=1e-5)
    assert retrieve(evidence, histories, 3)[0].shape[0] == 4


def test_the_target_and_what_follows_are_not_read(evidence):
    dataset = dataset_of([[1, 2, 3, 4, 5], [2, 3, 4, 1, 6]], NUM_ITEMS)
    changed = dataset_of([[1, 2, 3, 9, 8], [2, 3, 4, 7, 6]], NUM_ITEMS)
    candidates = np.array([[4, 9, 1]] * 2)
    first, second = (
        evidence.features(histories_before(each, each.targets["valid"]), candidates) for each in (dataset, changed)
    )
    np.testing.assert_array_equal(first, second)


def test_spaces_that_do_not_retrieve_are_still_evidence(evidence):
    histories = histories_of([np.array([0, 1]), np.array([5])])
    few = Evidence(
        np.expm1(evidence.log_counts.numpy()).round().astype(int), evidence.scorers, evidence.spaces, retrieving=()
    )
    users = few.represent(histories).vectors[0]
    nearest = [(users @ few.scorers[name].items.T).topk(3).indices[1].tolist() for name in ("cf", "joint")]
    assert few.searches.keys() == few.scorers.keys()
    assert set(retrieve(few, histories, 3)[0][1].tolist()) - {-1} == {5, *nearest[0], *nearest[1]}
    candidates = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(few.features(histories, candidates), evidence.features(histories, candidates))


def test_retrieval_is_the_union_without_repeats(evidence):
    histories = histories_of(SEQUENCES)
    retrieved = evidence.retrieve(histories, 4).candidates
    for row, sequence in enumerate(SEQUENCES):
        items = retrieved[row][retrieved[row] >= 0]
        assert len(items) == len(set(items.tolist()))
        assert set(sequence[-LATEST:]) <= set(items.tolist())
    user = evidence.scorers["cf"].backbone.encode(torch.tensor([[3, 4, 5]]))
    best = (user @ evidence.scorers["cf"].items.T)[0].topk(4).indices
    space = evidence.spaces["text"]
    nearest = (mean_embeddings(histories.latest_first(LATEST), space) @ space.unit.T)[0].topk(4).indices
    assert {*best.tolist(), *nearest.tolist()} <= set(retrieved[0].tolist())


def test_what_stands_anywhere_in_a_history():
    histories = histories_of([np.arange(80, 160), np.array([3]), np.array([], dtype=np.int64)])
    found = is_in_history(histories, np.array([[80, 159, 3, -1]] * 3), 200)
    assert found.tolist() == [[True, True, False, False], [False, False, True, False], [False] * 4]


def test_what_retrieval_knows_of_users_need_not_be_found_again(evidence, monkeypatch):
    histories = histories_of(SEQUENCES)
    candidates, users = evidence.retrieve(histories, 5)
    expected = evidence.features(histories, candidates)
    monkeypatch.setattr("allrec.hybrid.features.encode_histories", None)
    np.testing.assert_array_equal(evidence.features(histories, candidates, users), expected)


@pytest.fixture(scope="module")
def pairs_world():
    """Items come in pairs that are bought one after the other; a pair's titles share one word, as do no others'."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 10, (150, 3)) * 2
    histories = np.stack([first, first + 1], axis=2).reshape(150, 6).tolist()
    dataset = dataset_of(histories, 24)
    titles = [f"maker{item // 2} item{item}" for item in range(24)]
    texts = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    return dataset.__class__(**{**dataset.__dict__, "titles": titles}), texts


def quick_config():
    loop = LoopConfig(epochs=8, learning_rate=1e-2)
    config = EvidenceConfig()
    backbone = config.content.backbone.model_copy(
        update={"model": SASRecConfig(dim=16, dropout=0.1), "loop": loop, "tokens_per_batch": 200}
    )
    content = config.content.content.model_copy(update={"dim": 16})
    return config.model_copy(
        update={
            "tower": config.tower.model_copy(update={"content": content, "loop": loop, "batch_size": 64}),
            "content": config.content.model_copy(update={"content": content, "backbone": backbone}),
        }
    )


def test_content_learns_what_is_bought_together_and_again_the_same(pairs_world):
    dataset, texts = pairs_world
    parts = train_content_parts(dataset, texts, quick_config(), seed=0)
    cosines = parts.tuned() @ parts.tuned().T
    own = torch.stack([cosines[item, item + 1] for item in range(0, 20, 2)])
    others = cosines[:20, :20][~torch.eye(10, dtype=torch.bool).repeat_interleave(2, 0).repeat_interleave(2, 1)]
    assert own.min() > others.mean() + 0.3
    again = train_content_parts(dataset, texts, quick_config(), seed=0)
    assert torch.equal(parts.tuned(), again.tuned())
    assert torch.equal(parts.model.item_table, again.model.item_table)


def test_an_unseen_item_has_the_content_backbones_row_by_content_alone(pairs_world):
    dataset, texts = pairs_world
    parts = train_content_parts(dataset, texts, quick_config(), seed=0)
    rows = parts.content.embed(parts.catalogue.texts, parts.catalogue.words)
    is_unseen = torch.from_numpy(dataset.train_counts() == 0)
    assert is_unseen.any()
    torch.testing.assert_close(parts.model.item_table[is_unseen], rows[is_unseen])
    assert not torch.allclose(parts.model.item_table[~is_unseen], rows[~is_unseen], atol=1e-3)
    assert not parts.model.training
    assert [name for name, _ in parts.model.named_parameters() if "parametriz" in name] == []


def test_all_evidence_is_collected(pairs_world):
    dataset, texts = pairs_world
    parts = train_content_parts(dataset, texts, quick_config(), seed=0)
    backbone = freeze(SASRec(24, SASRecConfig(dim=8), torch.Generator().manual_seed(0)))
    collected = collect(
        Occurrences.of(TrainingHistories.of(dataset), 24), [Learned(backbone, parts, torch.randn(24, 8))]
    )
    assert {"cf", "content", "joint", "tuned_text_largest", "words_mean", "neighbours_latest"} <= set(collected.names)
    targets = dataset.targets["valid"]
    features = collected.features(histories_before(dataset, targets), targets.candidates["paper"])
    assert np.isfinite(features).all()


def largest_mean(spaces, histories, candidates):
    latest = histories.latest_first(10)
    similarities = torch.stack([space.similarity(latest, torch.from_numpy(candidates)) for space in spaces]).mean(dim=0)
    largest = similarities.masked_fill((latest < 0)[:, :, None], -1).amax(dim=1).numpy()
    return np.where((candidates < 0) | (latest[:, :1] < 0).numpy(), 0, largest)


def test_the_evidence_of_an_ensemble_is_the_mean_of_its_members(pairs_world):
    dataset, texts = pairs_world
    draw, histories = torch.Generator().manual_seed(5), histories_before(dataset, dataset.targets["valid"])
    members = [
        Learned(
            freeze(SASRec(24, SASRecConfig(dim=8), draw)),
            train_content_parts(dataset, texts, quick_config(), seed=seed),
            torch.randn(24, 8, generator=draw),
        )
        for seed in range(3)
    ]
    train = Occurrences.of(TrainingHistories.of(dataset), 24)
    candidates = dataset.targets["valid"].candidates["paper"]
    each = [collect(train, [member]) for member in members]
    together = collect(train, members)
    features = [one.features(histories, candidates) for one in (*each, together)]
    mean = np.mean(features[:3], axis=0)
    for column, name in enumerate(together.names):
        got, expected = features[3][:, :, column], mean[:, :, column]
        if name in together.scorers:
            # Each is normalised over the catalogue by itself, so the two differ by a number of the user's.
            apart = np.where(candidates >= 0, got - expected, np.nan)
            assert np.nanmax(np.nanmax(apart, axis=1) - np.nanmin(apart, axis=1)) < 1e-4
        elif name.endswith("_largest"):
            # The largest mean of similarities, where the mean of the largest may be of several items.
            expected = largest_mean([one.spaces[name.removesuffix("_largest")] for one in each], histories, candidates)
            np.testing.assert_allclose(got, expected, atol=1e-5)
        else:
            np.testing.assert_allclose(got, expected, atol=1e-5)
    everything = np.tile(np.arange(24), (histories.num_rows, 1))
    assert together.num_trained == 24
    scores = together.features(histories, everything)[:, :, : len(together.scorers)]
    np.testing.assert_allclose(np.exp(scores.astype(np.float64)).sum(axis=1), 1, atol=1e-4)


def test_an_ensemble_of_one_is_that_one(pairs_world):
    dataset, texts = pairs_world
    parts = train_content_parts(dataset, texts, quick_config(), seed=0)
    backbone = freeze(SASRec(24, SASRecConfig(dim=8), torch.Generator().manual_seed(0)))
    histories = torch.tensor([[1, 2, 3], [4, -1, -1], [-1, -1, -1]])
    one, two = Ensemble([backbone]), Ensemble([backbone, backbone])
    expected = backbone.encode(histories) @ backbone.item_embeddings().T
    assert torch.equal(one.encode(histories), backbone.encode(histories))
    torch.testing.assert_close(two.encode(histories) @ two.item_embeddings().T, expected)
    alone = collect(Occurrences.of(TrainingHistories.of(dataset), 24), [Learned(backbone, parts)])
    assert alone.scorers["cf"].backbone is backbone
    assert "joint" not in alone.names


def test_content_comes_back_as_it_was_stored_and_takes_new_items(pairs_world, tmp_path):
    dataset, texts = pairs_world
    config = quick_config()
    parts = train_content_parts(dataset, texts, config, seed=0)
    save_content_parts(tmp_path, parts)
    again = load_content_parts(tmp_path, dataset.titles, texts, config)
    assert torch.equal(again.tuned(), parts.tuned())
    assert torch.equal(again.model.item_table, parts.model.item_table)
    more = load_content_parts(tmp_path, [*dataset.titles, "maker3 unheard"], torch.cat([texts, texts[:1]]), config)
    assert torch.equal(more.model.item_table[:-1], parts.model.item_table)
    torch.testing.assert_close(more.tuned()[:-1], parts.tuned(), atol=1e-6, rtol=0)
    assert (more.tuned()[-1] @ parts.tuned()[6]) > (more.tuned()[-1] @ parts.tuned()[12])
    histories = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(more.model.encode(histories), parts.model.encode(histories), atol=1e-6, rtol=0)
    assert not any(parameter.requires_grad for parameter in more.model.parameters())


def test_stored_content_refuses_fewer_items(pairs_world, tmp_path):
    dataset, texts = pairs_world
    save_content_parts(tmp_path, train_content_parts(dataset, texts, quick_config(), seed=0))
    with pytest.raises(InputError, match="holds content of 24 items, got 23"):
        load_content_parts(tmp_path, dataset.titles[:-1], texts[:-1], quick_config())
