"""Freshness and the fallback chain, over a store; two services on one store are two workers."""

import gc
import time
import weakref

import pytest

from allrec.errors import InputError
from allrec.serving.lookups import Audiences, KeptEncoder, by_text, ranked_list, similar
from allrec.serving.service import DEFAULT_TENANT, Request, Service, settle_memory
from allrec.serving.store import Event, Item, Store


@pytest.fixture
def workers(run, tmp_path):
    """Two services on one store, without a language model."""
    stores = [Store.open(f"sqlite:///{tmp_path}/store.db") for _ in range(2)]
    services = [Service(store, run, cache=tmp_path / "cache", with_llm=False) for store in stores]
    yield services
    for service, store in zip(services, stores, strict=True):
        service.close()
        store.close()


def ask(service, **request):
    answered = service.submit(Request(DEFAULT_TENANT, **request)).result(60)
    if isinstance(answered, InputError):
        raise answered
    return answered


def ids(answered, k=10):
    return [answered.snapshot.model.catalogue.item_ids[item] for item in answered.ranked.items[:k]]


def bought(service, user, *item_ids, tenant=DEFAULT_TENANT):
    events = [Event(f"{user}-{item}", user, item, "purchase", 1.0 + place) for place, item in enumerate(item_ids)]
    service.store.add_events(tenant, events)


def test_a_stored_user_is_answered_as_recommend_answers(workers, system):
    for user in system.model.catalogue.user_ids[:5]:
        answered = ask(workers[0], user_id=user)
        assert ids(answered) == [one.item_id for one in system.recommend(user=user, k=10, use_llm=False)]
        assert (answered.scorer, answered.fallback) == ("fusion", None)


def test_an_event_counts_in_the_next_request_of_every_worker(workers, system):
    user, new = system.model.catalogue.user_ids[0], "nobody-yet"
    history = [system.model.catalogue.item_ids[item] for item in system.model.catalogue.history(0)]
    bought(workers[0], user, *[item for item in system.model.catalogue.item_ids if item not in history][:1])
    bought(workers[0], new, *system.model.catalogue.item_ids[:3])
    for worker in workers:
        (item,) = [item for item in system.model.catalogue.item_ids if item not in history][:1]
        expected = system.recommend(history=[*history, item], k=10, use_llm=False)
        assert ids(ask(worker, user_id=user)) == [one.item_id for one in expected]
        expected = system.recommend(history=system.model.catalogue.item_ids[:3], k=10, use_llm=False)
        assert ids(ask(worker, user_id=new)) == [one.item_id for one in expected]


def test_a_hidden_item_is_gone_and_comes_back_at_the_next_request_of_every_worker(workers, system):
    user = system.model.catalogue.user_ids[4]
    first = ids(ask(workers[0], user_id=user))[0]
    for settings in ({"is_hidden": True}, {"is_in_stock": False}, {"expires_at": time.time() - 1}):
        workers[0].store.set_availability(DEFAULT_TENANT, [first], **settings)
        for worker in workers:
            assert first not in ids(ask(worker, user_id=user), 200)
        back = {"is_hidden": False, "is_in_stock": True, "never_expires": True}
        workers[1].store.set_availability(DEFAULT_TENANT, [first], **back)
        for worker in workers:
            assert ids(ask(worker, user_id=user))[0] == first


def test_a_new_item_is_recommended_and_has_neighbours_at_the_next_request_of_every_worker(workers, system):
    user, title = system.model.catalogue.user_ids[0], system.model.catalogue.titles[7]
    workers[0].store.put_items(DEFAULT_TENANT, [Item("new", {"title": title, "colour": "red"})])
    for worker in workers:
        answered = ask(worker, user_id=user, settings={"filter": 'colour == "red"'})
        assert ids(answered) == ["new"]
        snapshot = answered.snapshot
        nearest = similar(snapshot, snapshot.num_items - 1, snapshot.available(0.0))
        assert len(nearest.items) > 10
        assert 7 in nearest.items[:5]
        assert snapshot.num_items - 1 not in nearest.items


@pytest.mark.parametrize(
    ("request_", "scorer", "words"),
    [
        ({"user_id": "unknown"}, "popular", "the user has no history: popular items"),
        ({"user_id": "unknown", "context": 5}, "similar", "the user has no history: items similar"),
        ({"user_id": "unknown", "history": (3,)}, "fusion", "the user has no history: the session"),
        ({"history": (3, 4)}, "fusion", None),
        ({"history": ()}, "popular", "no history was given: popular items"),
    ],
)
def test_the_chain_of_fallbacks_says_why(workers, system, request_, scorer, words):
    item_ids = system.model.catalogue.item_ids
    given = dict(request_)
    if "history" in given:
        given["history"] = tuple(item_ids[item] for item in given["history"])
    if "context" in given:
        given["context"] = item_ids[given["context"]]
    answered = ask(workers[0], **given)
    assert answered.scorer == scorer
    assert (answered.fallback or "").startswith(words or "")
    assert (answered.fallback is None) == (words is None)
    assert len(ids(answered)) == 10


def test_one_request_at_fault_has_its_error_and_the_others_their_answers(workers, system):
    users = system.model.catalogue.user_ids[:3]
    good = [Request(DEFAULT_TENANT, user_id=user) for user in users]
    bad = [Request(DEFAULT_TENANT, user_id=users[0], settings={"filter": "prize < 1.0"}), Request("nobody")]
    answers = workers[0].answer([good[0], bad[0], good[1], bad[1], good[2]])
    assert "unknown field 'prize'" in str(answers[1])
    assert "tenant 'nobody' has no run" in str(answers[3])
    for user, answered in zip(users, answers[::2], strict=True):
        assert ids(answered) == ids(ask(workers[0], user_id=user))


def test_tenants_share_nothing(workers, system, run):
    workers[0].store.put_tenant("other", run=str(run))
    user, item = "somebody", system.model.catalogue.item_ids[9]
    bought(workers[0], user, item, tenant="other")
    workers[0].store.set_availability("other", [system.model.catalogue.item_ids[1]], is_hidden=True)
    other = workers[0].submit(Request("other", user_id=user)).result(60)
    assert other.scorer == "fusion"
    assert system.model.catalogue.item_ids[1] not in ids(other, 200)
    mine = ask(workers[0], user_id=user, settings={"k": 60})
    assert mine.scorer == "popular"
    assert system.model.catalogue.item_ids[1] in ids(mine, 60)


def test_workers_follow_a_publication_and_a_roll_back(workers, run, tmp_path, system):
    other = tmp_path / "other"
    system.save_pretrained(other)
    user = system.model.catalogue.user_ids[0]

    def switched(version):
        for worker in workers:
            end = time.monotonic() + 60
            while ask(worker, user_id=user).snapshot.served.version != version:
                assert time.monotonic() < end
                time.sleep(0.05)

    noted = []
    workers[0].on_switched = lambda: noted.append(workers[0].tenants[DEFAULT_TENANT].snapshot.served.version)
    first = ask(workers[0], user_id=user).snapshot.served
    version = workers[0].store.publish(DEFAULT_TENANT, run=str(other)).version
    switched(version)
    assert ask(workers[1], user_id=user).snapshot.served.run == str(other)
    workers[1].store.roll_back(DEFAULT_TENANT)
    switched(first.version)
    assert noted[:1] == [version]
    workers[0].store.publish(DEFAULT_TENANT, run=str(tmp_path / "missing"))
    assert ids(ask(workers[0], user_id=user)) == ids(ask(workers[1], user_id=user))


def test_what_is_there_is_left_out_of_collections_until_it_is_settled_again():
    class Loop:
        def __init__(self):
            self.own = self

    loop = Loop()
    gone = weakref.ref(loop)
    try:
        settle_memory()
        assert gc.get_freeze_count() > 1000
        del loop
        gc.collect()
        assert gone() is not None
        settle_memory()
        assert gone() is None
    finally:
        gc.unfreeze()


def test_a_list_is_ranked_as_rank_ranks_it(workers, system):
    snapshot = workers[0].tenant(DEFAULT_TENANT).snapshot
    listed = system.model.catalogue.item_ids[:12]
    ranked = ranked_list(snapshot, system.model.catalogue.history(3).tolist(), snapshot.positions(listed))
    expected = system.rank(listed, user=system.model.catalogue.user_ids[3], use_llm=False)
    assert [snapshot.model.catalogue.item_ids[item] for item in ranked.items] == [one.item_id for one in expected]


def test_a_query_finds_the_item_of_that_text_and_a_user_reorders(workers, system):
    snapshot = workers[0].tenant(DEFAULT_TENANT).snapshot
    query = KeptEncoder(snapshot.served).encode([system.model.catalogue.texts[11]])
    found = by_text(snapshot, query, snapshot.available(0.0))
    assert found.scores[0] == pytest.approx(1.0, abs=1e-5)
    assert 11 in found.items[:3]
    personal = ask(workers[0], user_id=system.model.catalogue.user_ids[0], settings={"k": 60}).ranked
    mixed = by_text(snapshot, query, snapshot.available(0.0), personal)
    assert sorted(mixed.items.tolist()) == sorted(found.items.tolist())
    assert mixed.items.tolist() != found.items.tolist()


def test_an_item_goes_to_users_who_did_not_have_it(workers):
    snapshot = workers[0].tenant(DEFAULT_TENANT).snapshot
    catalogue = snapshot.model.catalogue
    erased, owner = Audiences(snapshot.served).of(snapshot, 3, 2, lambda user: False).user_ids
    workers[0].store.erase_user(DEFAULT_TENANT, erased)
    bought(workers[0], owner, catalogue.item_ids[3])
    is_left_out = workers[1].left_out_of(DEFAULT_TENANT, catalogue.item_ids[3])
    found = Audiences(snapshot.served).of(snapshot, 3, 10, is_left_out)
    assert not {erased, owner} & {*found.user_ids}
    assert len(found.user_ids) == 10
    assert all(3 not in catalogue.history(catalogue.user(user)) for user in found.user_ids)
    assert found.scores == sorted(found.scores, reverse=True)
    assert max(found.scores) < 0
