"""A refresh learns from the store's events, is compared on the newest, and serves only where it is not worse."""

import json

import numpy as np
import pytest

from allrec.data import load_dataset
from allrec.errors import InputError
from allrec.recommender import AllRec
from allrec.serving.refresh import REPORT, RefreshConfig, compared, newest, ranks, refresh, reports, write_source
from allrec.serving.service import Service, behind
from allrec.serving.snapshots import refresh_folder
from allrec.serving.store import Event, Item, Store
from worlds import FUSED, make_world

NUM_NEW = 40


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refreshed")
    dataset, _, recipe = make_world(folder, (*FUSED, "llm.enabled=false"))
    AllRec.train(dataset, run=folder / "run", recipe=recipe, cache=folder / "cache", is_evaluated=False)
    return folder


@pytest.fixture
def store(base, tmp_path):
    opened = Store.open(f"sqlite:///{tmp_path}/store.db")
    opened.put_tenant("default", run=str(base / "run"))
    yield opened
    opened.close()


def events_of(system, num_users=NUM_NEW):
    """New users who buy the same three items one after the other, and known users who buy the first of them."""
    ids, known = system.model.catalogue.item_ids, system.model.catalogue.user_ids
    rows = [(f"new-{user}", item, 3 * user + place) for user in range(num_users) for place, item in enumerate(ids[:3])]
    rows += [(user, ids[0], 1000 + place) for place, user in enumerate(known[:5])]
    return [Event(f"e{time}", user, item, "purchase", float(time)) for user, item, time in rows]


def rows_of(folder):
    return [json.loads(line) for line in (folder / "interactions.jsonl").read_text().splitlines()]


def config(base, **options):
    return RefreshConfig(cache=base / "cache", **options)


def test_a_refresh_that_is_not_worse_serves_and_knows_the_events(base, store, tmp_path):
    old = AllRec.from_pretrained(base / "run")
    store.add_events("default", events_of(old))
    store.put_items("default", [Item("brand-new", {"title": "Silver comb", "description": "Made by hand."})])
    stages = []
    report = refresh(store, "default", base / "first", config(base, margin=1.0), lambda stage, *_: stages.append(stage))
    assert report["state"] == "done"
    assert report["published"]
    assert report["users"] >= NUM_NEW
    assert {"backbone", "alignment", "refit"} <= set(stages)
    assert store.serving("default").run == str(base / "first")
    new = AllRec.from_pretrained(base / "first")
    catalogue = new.model.catalogue
    ids = [catalogue.item_ids[item] for item in catalogue.history(catalogue.user("new-0"))]
    assert ids == old.model.catalogue.item_ids[:3]
    assert catalogue.titles[catalogue.item("brand-new")] == "Silver comb"
    first = old.model.catalogue
    told = [first.item_ids[item] for item in first.history(0)]
    assert [catalogue.item_ids[item] for item in catalogue.history(catalogue.user(first.user_ids[0]))] == [
        *told,
        first.item_ids[0],
    ]
    # What the run learned from is not counted twice, and what comes later counts.
    service = Service(store, base / "first", cache=base / "cache", with_llm=False)
    snapshot = service.tenant("default").snapshot
    before = service.user_history(snapshot, "default", "new-0")
    assert [catalogue.item_ids[item] for item in before] == ids
    store.add_events("default", [Event("later", "new-0", "brand-new", "view", 5000.0)])
    after = service.user_history(snapshot, "default", "new-0")
    assert [catalogue.item_ids[item] for item in after] == [*ids, "brand-new"]
    service.close()
    assert reports(base)[0]["run"] == "first"
    # Refreshed once more, it learns from what is new alone.
    assert write_source(store, "default", catalogue, tmp_path / "again", is_refreshed=True) == 1
    assert [row["item_id"] for row in rows_of(tmp_path / "again") if row["user_id"] == "new-0"] == [*ids, "brand-new"]
    assert refresh(store, "default", base / "first", config(base, margin=1.0)) == report
    # Killed after it was published and before it said so, it is not published twice.
    file = refresh_folder(base / "first") / REPORT
    file.write_text(json.dumps(report | {"state": "training"}))
    versions = store.model_history("default")
    again = refresh(store, "default", base / "first", config(base, margin=1.0))
    assert store.model_history("default") == versions
    assert {**again, "at": 0} == {**report, "at": 0}


def test_erased_users_are_forgotten_at_once_and_not_learned_from_again(base, store, tmp_path):
    system = AllRec.from_pretrained(base / "run")
    catalogue = system.model.catalogue
    erased, kept = catalogue.user_ids[:2]
    store.add_events("default", events_of(system))
    service = Service(store, base / "run", cache=base / "cache", with_llm=False)
    snapshot = service.tenant("default").snapshot
    assert service.user_history(snapshot, "default", erased)
    store.erase_user("default", erased)
    assert service.user_history(snapshot, "default", erased) == ()
    assert service.user_history(snapshot, "default", kept)
    store.erase_user("default", erased)
    service.close()
    write_source(store, "default", catalogue, tmp_path / "source")
    users = {row["user_id"] for row in rows_of(tmp_path / "source")}
    assert erased not in users
    assert {kept, "new-0"} <= users
    # One who comes back is a new user.
    store.add_events("default", [Event("back", erased, catalogue.item_ids[4], "view", 9000.0)])
    write_source(store, "default", catalogue, tmp_path / "source")
    rows = [row["item_id"] for row in rows_of(tmp_path / "source") if row["user_id"] == erased]
    assert rows == [catalogue.item_ids[4]]
    assert not store.is_erased("other", erased)


def test_a_refresh_that_may_be_worse_does_not_serve(base, store):
    store.add_events("default", events_of(AllRec.from_pretrained(base / "run")))
    report = refresh(store, "default", base / "worse", config(base, margin=-2.0))
    assert not report["published"]
    assert "worse" in report["reason"]
    assert store.serving("default").run == str(base / "run")
    assert json.loads((refresh_folder(base / "worse") / REPORT).read_text()) == report


def test_what_it_is_compared_on_is_behind_what_the_old_run_has(base, store):
    old = AllRec.from_pretrained(base / "run")
    assert newest(load_dataset(base / "dataset"), old.model.catalogue, 1000) == []


def test_a_run_is_as_good_as_itself_and_few_users_say_nothing(base):
    system = AllRec.from_pretrained(base / "run")
    ids = system.model.catalogue.item_ids
    asked = [([ids[place]], ids[place + 1]) for place in range(40)]
    result = compared(system, system, asked, 0.0)
    assert result["published"]
    assert result["difference"] == 0
    assert result["ndcg"]["old"] == result["ndcg"]["new"]
    found = [item.item_id for item in system.recommend(history=[ids[0]], k=10, with_history=True, use_llm=False)]
    one = compared(system, system, [([ids[0]], found[3])] * 30, 0.0)
    assert one["ndcg"]["old"] == pytest.approx(1 / np.log2(5))
    assert not compared(system, system, asked[:29], 0.0)["published"]


def test_ranks_of_all_users_together_are_those_that_recommend_gives_each(base):
    system = AllRec.from_pretrained(base / "run")
    ids = system.model.catalogue.item_ids
    asked = [([ids[place], "gone", ids[3]], ids[(7 * place) % 20]) for place in range(20)]
    asked += [([], ids[0]), (["gone"], ids[1]), ([ids[0]], "gone")]
    expected = []
    for history, target in asked:
        known = [item for item in history if item in ids]
        given = [item.item_id for item in system.recommend(history=known, k=10, with_history=True, use_llm=False)]
        expected.append(given.index(target) if target in given else 10)
    assert ranks(system.model, asked).tolist() == expected
    assert len({*expected}) > 3


def test_nothing_to_learn_from_is_refused(base, store):
    with pytest.raises(InputError, match="no event of tenant 'default'"):
        refresh(store, "default", base / "nothing", config(base))
    (failed,) = [one for one in reports(base) if one["run"] == "nothing"]
    assert (failed["state"], failed["from_run"]) == ("failed", "run")
    assert "no event of tenant" in failed["reason"]
    with pytest.raises(InputError, match="no run serves tenant 'other'"):
        refresh(store, "other", base / "nothing-else", config(base))


@pytest.mark.parametrize(
    ("known", "own", "expected"),
    [
        ([1, 2, 3], [2, 3, 4], [4]),
        ([1, 2, 3], [4], [4]),
        ([1, 2], [1, 2], []),
        ([], [5], [5]),
        ([1, 1], [1, 1, 1], [1]),
    ],
)
def test_events_that_a_history_ends_with_are_not_told_again(known, own, expected):
    assert behind(known, own) == expected
