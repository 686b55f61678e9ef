"""The catalogue of a run: a round trip through its files, and ids that nobody knows."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.training.histories import dataset_of

from allrec.data.catalogue import Catalogue
from allrec.errors import InputError, Wording

HISTORIES = [[0, 1, 2, 1], [], [3], []]


def make_dataset(histories=HISTORIES, num_items=5):
    dataset = dataset_of(histories, num_items)
    titles = ["Kettle", None, 'Pot "two"', "", "Pan\nwith a line"][:num_items]
    return replace(dataset, titles=titles, texts=["boils", None, None, "x", "ünicode 𝒳"][:num_items])


def come_back(folder, catalogue):
    catalogue.save(folder)
    return Catalogue.load(folder, catalogue.wording)


def assert_equal(first, second):
    for name in ("item_ids", "titles", "texts", "user_ids", "wording"):
        assert getattr(first, name) == getattr(second, name), name
    for name in ("train_counts", "offsets", "items"):
        one, other = getattr(first, name), getattr(second, name)
        assert one.tolist() == other.tolist(), name
        assert one.dtype == other.dtype, name


def test_round_trip(tmp_path):
    catalogue = Catalogue.of(make_dataset())
    assert_equal(come_back(tmp_path, catalogue), catalogue)


def test_histories_come_back_whole_and_training_is_counted(tmp_path):
    catalogue = come_back(tmp_path, Catalogue.of(make_dataset()))
    assert [catalogue.history(user).tolist() for user in range(4)] == HISTORIES
    # User 0 trains on the items 0 and 1, user 2 on item 3.
    assert catalogue.train_counts.tolist() == [1, 1, 0, 1, 0]
    assert catalogue.num_items == 5


@pytest.mark.parametrize("histories", [[[]], [[], [], [1]], [[2, 2], []], [[0] * 50]])
def test_users_without_a_history_come_back(tmp_path, histories):
    catalogue = Catalogue.of(make_dataset(histories))
    assert_equal(come_back(tmp_path, catalogue), catalogue)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 4), max_size=6), min_size=1, max_size=8))
def test_any_histories_come_back(tmp_path, histories):
    catalogue = Catalogue.of(make_dataset(histories))
    assert_equal(come_back(tmp_path, catalogue), catalogue)


def test_equal_catalogues_are_equal_bytes(tmp_path):
    for name in ("first", "second"):
        Catalogue.of(make_dataset()).save(tmp_path / name)
    for file in ("items.parquet", "users.parquet"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_ids_lead_to_positions(tmp_path):
    catalogue = come_back(tmp_path, Catalogue.of(make_dataset()))
    assert [catalogue.item(item_id) for item_id in catalogue.item_ids] == list(range(5))
    assert [catalogue.user(user_id) for user_id in catalogue.user_ids] == list(range(4))


def test_an_unknown_id_names_the_nearest():
    catalogue = Catalogue.of(make_dataset())
    with pytest.raises(InputError, match=r"unknown item 'item3': did you mean 'item 3'\?"):
        catalogue.item("item3")
    with pytest.raises(InputError, match=r"unknown user 'zzz': there are 4 users\. Ids are those of the data set"):
        catalogue.user("zzz")


def test_an_unknown_id_of_no_users_is_told():
    catalogue = replace(
        Catalogue.of(make_dataset([[1]])), user_ids=[], offsets=np.array([0]), items=np.zeros(0, np.int32)
    )
    with pytest.raises(InputError, match=r"unknown user 'a': there are 0 users"):
        catalogue.user("a")


def test_the_wording_comes_from_outside(tmp_path):
    Catalogue.of(make_dataset()).save(tmp_path)
    wording = Wording(noun="song", verb="hear", past="heard")
    assert Catalogue.load(tmp_path, wording).wording == wording
