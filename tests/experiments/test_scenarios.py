"""Scenarios: what is held out is nowhere in training, and what is asked for is what the name says."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from tests.training.histories import dataset_of

from allrec.data.split import leave_last_out
from allrec.errors import InputError
from allrec.experiments.scenarios import (
    COLD_LENGTH,
    NAMES,
    global_time,
    make_scenario,
    reorder_items,
    unseen,
    without_interactions,
)

NUM_ITEMS = 40


def drawn(num_users=60, num_items=NUM_ITEMS, seed=0):
    """Histories of 2 to 9 items, every fifth of exactly three."""
    rng = np.random.default_rng(seed)
    lengths = [3 if user % 5 == 0 else int(rng.integers(2, 10)) for user in range(num_users)]
    dataset = dataset_of([rng.integers(0, num_items, length).tolist() for length in lengths], num_items)
    names = [f"title {item}" for item in range(num_items)]
    return replace(dataset, titles=names, texts=names, sha256="whole")


def trained_users(dataset):
    return set(np.flatnonzero(dataset.train_lengths).tolist())


def check_targets(dataset):
    """Every target stands where it says, after something, and once among its candidates."""
    for rows in dataset.targets.values():
        places = dataset.offsets[rows.users] + rows.positions
        assert (places < dataset.offsets[rows.users + 1]).all()
        assert (dataset.items[places] == rows.items).all()
        assert (rows.positions > 0).all()
        for lists in rows.candidates.values():
            assert ((lists == rows.items[:, None]).sum(axis=1) == 1).all()
    assert (dataset.train_lengths <= np.diff(dataset.offsets)).all()


def test_standard_is_the_data_set_itself():
    dataset = drawn()
    assert make_scenario(dataset, "standard", 0) == (dataset, dataset)


def test_cold_users_have_three_interactions_and_train_nothing():
    dataset = drawn()
    train, asked = make_scenario(dataset, "cold-users", 0)
    three = set(np.flatnonzero(np.diff(dataset.offsets) == 3).tolist())
    assert len(three) >= 12
    assert set(asked.targets["test"].users.tolist()) == three
    assert set(asked.targets["test"].positions.tolist()) == {2}
    assert trained_users(train) == set(range(60)) - three
    assert set(train.targets["valid"].users.tolist()) & three == set()
    # Everybody else trains as before, and the candidates are the ones that were stored.
    others = sorted(set(range(60)) - three)
    assert (train.train_lengths[others] == dataset.train_lengths[others]).all()
    stored = dict(zip(dataset.targets["test"].users.tolist(), dataset.targets["test"].candidates["paper"], strict=True))
    for user, listed in zip(
        asked.targets["test"].users.tolist(), asked.targets["test"].candidates["paper"], strict=True
    ):
        assert (listed == stored[user]).all()
    check_targets(asked)


def test_drawn_cold_users_are_cut_to_three_interactions():
    dataset = drawn()
    train, asked = make_scenario(dataset, "cold-users-20", 3)
    chosen = asked.targets["test"].users
    assert len(chosen) == 20
    assert (np.diff(asked.offsets)[chosen] == COLD_LENGTH).all()
    assert trained_users(train) == set(range(60)) - set(chosen.tolist())
    for user in chosen:
        assert asked.history(user).tolist() == dataset.history(user)[:3].tolist()
    for user in set(range(60)) - set(chosen.tolist()):
        assert train.train_history(user).tolist() == dataset.train_history(user).tolist()
    check_targets(asked)
    check_targets(train)


def test_negatives_of_a_cut_user_were_touched_nowhere_not_in_what_was_cut_off():
    # Ten items each out of twelve: a list of three has no room for anything but the two others.
    rng = np.random.default_rng(0)
    dataset = dataset_of([rng.permutation(12)[:10].tolist() for _ in range(8)], 12, num_candidates=3)
    asked = make_scenario(dataset, "cold-users-4", 0).evaluated.targets["test"]
    for user, listed, target in zip(asked.users, asked.candidates["paper"], asked.items, strict=True):
        assert set(listed.tolist()) - {target} == set(range(12)) - set(dataset.history(user).tolist())


def test_few_shot_trains_and_validates_on_so_many_users_and_asks_everybody():
    dataset = drawn()
    train, asked = make_scenario(dataset, "few-shot-7", 1)
    assert len(trained_users(train)) == 7
    assert set(train.targets["valid"].users.tolist()) == trained_users(train)
    assert asked.targets["test"] == dataset.targets["test"]
    assert train.train_csr()[0][-1] == sum(dataset.train_lengths[user] for user in trained_users(train))


def test_a_smaller_draw_is_part_of_a_larger_one_and_seeds_differ():
    dataset = drawn()
    few, more, other = (
        trained_users(make_scenario(dataset, name, seed).train)
        for name, seed in (("few-shot-5", 0), ("few-shot-15", 0), ("few-shot-5", 1))
    )
    assert few < more
    assert few != other


def test_unseen_items_are_in_nothing_that_trains_and_last_in_what_is_asked():
    dataset = drawn(num_users=200)
    train, asked = unseen(dataset, 0, share=0.25)
    assert (train.num_items, asked.num_items) == (30, 40)
    assert asked.item_ids[:30] == train.item_ids
    assert sorted(asked.item_ids) == sorted(dataset.item_ids)
    assert train.items.max() < 30
    assert max(lists.max() for rows in train.targets.values() for lists in rows.candidates.values()) < 30
    # Ids and titles moved together with their items.
    assert all(
        item_id.replace("item", "title") == title for item_id, title in zip(asked.item_ids, asked.titles, strict=True)
    )
    wanted = asked.targets["test"]
    assert (wanted.items >= 30).all()
    for user, position in zip(wanted.users, wanted.positions, strict=True):
        history = [asked.item_ids[item] for item in asked.history(user)[:position]]
        whole = [dataset.item_ids[item] for item in dataset.history(user)]
        assert set(history) <= set(train.item_ids)
        assert history == [item_id for item_id in whole[:-1] if item_id in set(train.item_ids)]
        assert asked.item_ids[asked.history(user)[position]] == whole[-1]
    assert len(asked.targets["valid"]) == 0
    check_targets(asked)
    check_targets(train)


def test_unseen_asks_every_user_whose_last_item_was_held_out_and_who_has_a_history():
    dataset = drawn(num_users=200)
    train, asked = unseen(dataset, 0, share=0.25)
    known = {dataset.item_ids.index(item_id) for item_id in train.item_ids}
    expected = [
        user for user in dataset.targets["test"].users
        if dataset.history(user)[-1] not in known and known & set(dataset.history(user)[:-1].tolist())
    ]  # fmt: skip
    assert asked.targets["test"].users.tolist() == expected
    assert len(expected) > 20


def test_items_without_a_text_are_not_held_out():
    dataset = drawn(num_users=200)
    half = replace(dataset, texts=[text if item % 2 else None for item, text in enumerate(dataset.texts)])
    train, asked = unseen(half, 0, share=0.4)
    assert asked.num_items - train.num_items == 16
    assert None not in asked.texts[train.num_items :]


def test_training_counts_of_unseen_items_are_missing_not_zero():
    dataset = drawn(num_users=200)
    train, _ = unseen(dataset, 0, share=0.25)
    kept = [dataset.item_ids.index(item_id) for item_id in train.item_ids]
    lengths = [sum(item in kept for item in dataset.train_history(user)) for user in range(200)]
    assert train.train_lengths.tolist() == lengths
    assert train.train_counts().tolist() == dataset.train_counts()[kept].tolist()


def rising_times(dataset):
    """Every interaction at a time of its own, users mixed; times rise within every user."""
    times = np.random.default_rng(0).permutation(dataset.num_interactions)
    return np.concatenate([np.sort(part) for part in np.split(times, dataset.offsets[1:-1])])


def test_time_parts_training_from_targets_for_everybody():
    dataset = drawn()
    times = rising_times(dataset)
    parted = global_time(dataset, times, 0)
    first, second = np.quantile(times, [0.8, 0.9])
    for user in range(dataset.num_users):
        own = times[dataset.offsets[user] : dataset.offsets[user + 1]]
        assert parted.train_lengths[user] == (own < first).sum()
    for split, (low, high) in {"valid": (first, second), "test": (second, np.inf)}.items():
        rows = parted.targets[split]
        asked = times[parted.offsets[rows.users] + rows.positions]
        before = times[parted.offsets[rows.users] + rows.positions - 1]
        assert ((asked >= low) & (asked < high) & (before < low)).all()
        assert len(rows) > 5
    check_targets(parted)


def test_times_are_read_from_the_data_set_folder(tmp_path):
    dataset = replace(drawn(), path=tmp_path)
    times = rising_times(dataset)
    pl.DataFrame({"item": dataset.items, "timestamp": times}).write_parquet(tmp_path / "interactions.parquet")
    made = make_scenario(dataset, "global-time", 0).train
    assert made.train_lengths.tolist() == global_time(dataset, times, 0).train_lengths.tolist()
    pl.DataFrame({"item": dataset.items}).write_parquet(tmp_path / "interactions.parquet")
    with pytest.raises(InputError, match="small has no timestamps"):
        make_scenario(dataset, "global-time", 0)


def test_nothing_dropped_changes_nothing_and_back_is_back():
    dataset = drawn()
    same = without_interactions(dataset, np.zeros(dataset.num_interactions, bool))
    assert same.items.tolist() == dataset.items.tolist()
    assert same.train_lengths.tolist() == dataset.train_lengths.tolist()
    assert same.targets["test"].positions.tolist() == dataset.targets["test"].positions.tolist()
    order = np.random.default_rng(0).permutation(NUM_ITEMS)
    again = reorder_items(reorder_items(dataset, order), np.argsort(order))
    assert again.items.tolist() == dataset.items.tolist()
    assert again.item_ids == dataset.item_ids
    assert again.targets["valid"].candidates["paper"].tolist() == dataset.targets["valid"].candidates["paper"].tolist()


def test_padding_of_candidates_stays_padding():
    dataset = drawn()
    test = dataset.targets["test"]
    padded = replace(test, candidates={"paper": np.pad(test.candidates["paper"], ((0, 0), (0, 2)), constant_values=-1)})
    moved = reorder_items(replace(dataset, targets=dataset.targets | {"test": padded}), np.arange(NUM_ITEMS)[::-1])
    assert (moved.targets["test"].candidates["paper"][:, -2:] == -1).all()


def test_a_scenario_has_a_name_and_a_checksum_of_its_own_and_the_same_seed_gives_the_same():
    dataset = drawn(num_users=300)
    made = [
        make_scenario(dataset, name, seed).train for name, seed in (("cold-users", 0), ("unseen", 0), ("unseen", 1))
    ]
    assert [each.scenario for each in made] == ["cold-users", "unseen", "unseen"]
    assert len({each.sha256 for each in [*made, dataset]}) == 4
    again = make_scenario(dataset, "unseen", 1)
    assert again.train.sha256 == again.evaluated.sha256 == made[2].sha256
    assert again.train.item_ids == made[2].item_ids
    assert made[2].counts["train_interactions"] == made[2].train_lengths.sum()


def test_what_a_scenario_takes_is_what_was_split_before():
    dataset = drawn()
    lengths = np.diff(dataset.offsets)
    assert dataset.train_lengths.tolist() == leave_last_out(lengths).train_lengths.tolist()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cold-user", "unknown scenario 'cold-user': did you mean 'cold-users'"),
        ("few-shot", "unknown scenario 'few-shot'"),
        ("few-shot-0", "got few-shot-0, and small has .* expected 1 to"),
        ("few-shot-256", "small has 48 users with a validation and a test target"),
        ("cold-users-2000", "got cold-users-2000, and small has"),
        ("unseen-", "unknown scenario"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused(name, message):
    with pytest.raises(InputError, match=message):
        make_scenario(drawn(), name, 0)


def test_cold_users_need_users_of_three():
    with pytest.raises(InputError, match="no user with exactly 3 interactions"):
        make_scenario(dataset_of([[0, 1, 2, 3]] * 5, 9), "cold-users", 0)


def test_unseen_needs_targets_among_the_held_out():
    with pytest.raises(InputError, match="no test target among 0 held-out items"):
        make_scenario(dataset_of([[0, 1, 2, 3]] * 5, 9), "unseen", 0)


def test_every_name_is_understood():
    dataset = drawn(num_users=3000)
    for name in NAMES:
        if name != "global-time":
            assert make_scenario(dataset, name, 0).train.scenario == name
