"""What is served is what is measured: requests together rank as ``AllRec.recommend`` does, one by one."""

import numpy as np
import pytest

from allrec.serving.ranking import RequestRanker, Wanted, contributions, mask_of
from allrec.serving.records import Item


def ids(snapshot, ranked, k=10):
    return [snapshot.model.catalogue.item_ids[item] for item in ranked.items[:k]]


def wanted_of(snapshot, user, **settings):
    catalogue = snapshot.model.catalogue
    return Wanted(tuple(catalogue.history(catalogue.user(user)).tolist()), **settings)


def ranked(snapshot, wanted, now=0.0, ranker=None):
    (one,) = (ranker or RequestRanker()).rank(snapshot, [wanted], [mask_of(snapshot, wanted, now)])
    return one


def item(item_id, **settings):
    return Item(item_id, settings.pop("fields", {}), **settings)


@pytest.mark.parametrize("with_history", [False, True])
def test_requests_together_are_answered_as_recommend_answers_each(snapshot, system, with_history):
    users = system.model.catalogue.user_ids[:20]
    wanted = [wanted_of(snapshot, user, with_history=with_history) for user in users]
    together = RequestRanker().rank(snapshot, wanted, [mask_of(snapshot, one, 0.0) for one in wanted])
    for user, one in zip(users, together, strict=True):
        expected = system.recommend(user=user, k=10, use_llm=False, with_history=with_history)
        assert ids(snapshot, one) == [found.item_id for found in expected]
        assert one.scores[:10].tolist() == pytest.approx([found.score for found in expected], rel=1e-5)


def test_more_than_was_retrieved_is_filled_from_the_catalogue(snapshot, system):
    user = system.model.catalogue.user_ids[3]
    one = ranked(snapshot, wanted_of(snapshot, user, k=60))
    assert ids(snapshot, one, 60) == [found.item_id for found in system.recommend(user=user, k=60, use_llm=False)]


def test_a_strict_filter_still_fills_k_and_a_hidden_item_is_gone(snapshot):
    user = snapshot.model.catalogue.user_ids[0]
    kept = snapshot.model.catalogue.item_ids[::5]
    one = ranked(snapshot, wanted_of(snapshot, user, k=6, filter=f"item_id in {kept}"))
    assert set(ids(snapshot, one, 6)) <= set(kept)
    assert len(ids(snapshot, one, 6)) == 6
    hidden = ids(snapshot, one, 1)[0]
    after = snapshot.after(1, [item(hidden, is_hidden=True)], None)
    other = ranked(after, wanted_of(snapshot, user, k=6, filter=f"item_id in {kept}"))
    assert hidden not in ids(after, other, 200)
    assert after.model is snapshot.model


def test_availability_ends_with_the_time_and_the_kept_ranking_does_not_outlive_it(snapshot):
    ranker, user = RequestRanker(), snapshot.model.catalogue.user_ids[1]
    wanted = wanted_of(snapshot, user)
    first = ids(snapshot, ranked(snapshot, wanted, 0.0, ranker), 1)[0]
    after = snapshot.after(1, [item(first, expires_at=100.0)], None)
    assert ids(after, ranked(after, wanted, 99.0, ranker), 1) == [first]
    assert first not in ids(after, ranked(after, wanted, 100.0, ranker), 200)
    back = after.after(2, [item(first)], None)
    assert ids(back, ranked(back, wanted, 100.0, ranker), 1) == [first]


def test_the_same_request_is_ranked_once_while_nothing_changes(snapshot):
    ranker, wanted = RequestRanker(), wanted_of(snapshot, snapshot.model.catalogue.user_ids[2])
    first, again = (ranked(snapshot, wanted, now, ranker) for now in (0.0, 1.0))
    assert first.items.tolist() == again.items.tolist()
    assert (ranker.num_ranked, ranker.num_kept) == (1, 1)


def test_a_new_item_joins_as_add_items_lets_it_and_the_rest_keep_their_positions(snapshot, tmp_path):
    fields = {"title": "rose hand cream", "description": "night serum", "price": 3.0}
    after = snapshot.after(4, [item("new-1", fields=fields)], tmp_path)
    assert after.model.catalogue.item_ids[-1] == "new-1"
    assert after.model.catalogue.item_ids[:-1] == snapshot.model.catalogue.item_ids
    assert after.items.fields[-1]["price"] == 3.0
    assert after.items.fields[-1]["is_new"]
    text = snapshot.served.encode(["rose hand cream. night serum"], tmp_path)
    np.testing.assert_allclose(after.model.text_embeddings[-1], text[0], atol=1e-6)
    wanted = wanted_of(snapshot, snapshot.model.catalogue.user_ids[0], filter="price < 5.0")
    one = ranked(after, wanted)
    assert ids(after, one) == ["new-1"]
    renamed = after.after(5, [item("new-1", fields={"title": "comb"}), item("new-2", fields=fields)], tmp_path)
    assert renamed.model.catalogue.titles[-2:] == ["comb", "rose hand cream"]
    assert [one.joined_at for one in (snapshot, after, renamed)] == [0, 4, 5]
    assert renamed.after(6, [item("new-1", fields={"title": "comb"}, is_hidden=True)], tmp_path).joined_at == 5


def test_an_embedding_of_the_runs_encoder_is_taken_as_stored(snapshot, tmp_path):
    width = snapshot.model.text_embeddings.shape[1]
    stored = np.arange(width, dtype=np.float32)
    given = {"fields": {"title": "comb"}, "embedding": stored.tobytes()}
    own = snapshot.after(1, [item("new", **given, encoder=snapshot.served.encoder)], tmp_path)
    assert own.model.text_embeddings[-1].tolist() == stored.tolist()
    other = snapshot.after(1, [item("new", **given, encoder="another")], tmp_path)
    np.testing.assert_allclose(other.model.text_embeddings[-1], snapshot.served.encode(["comb"], tmp_path)[0])


def test_a_boost_multiplies_the_odds(snapshot):
    user = snapshot.model.catalogue.user_ids[0]
    plain = ranked(snapshot, wanted_of(snapshot, user))
    tenth = snapshot.model.catalogue.item_ids[plain.items[9]]
    boost = f'item_id == "{tenth}" ? 100.0 : 1.0'
    one = ranked(snapshot, wanted_of(snapshot, user, boost=boost))
    place = ids(snapshot, one).index(tenth)
    assert place < 9
    assert one.scores[place] == pytest.approx(plain.scores[9] + np.log(100))


def test_diversity_keeps_the_first_and_spreads_the_rest(snapshot):
    user = snapshot.model.catalogue.user_ids[0]
    plain = ranked(snapshot, wanted_of(snapshot, user))
    spread = ranked(snapshot, wanted_of(snapshot, user, diversity=1.0))
    assert spread.items[0] == plain.items[0]
    assert sorted(spread.items.tolist()) == sorted(plain.items.tolist())

    def likeness(ranked):
        texts = snapshot.model.text_embeddings[ranked.items[:5]].numpy()
        texts /= np.linalg.norm(texts, axis=1, keepdims=True)
        return (texts @ texts.T).sum()

    assert likeness(spread) < likeness(plain)


def test_contributions_are_those_of_recommend_and_sum_to_the_score(snapshot, system):
    user = system.model.catalogue.user_ids[5]
    wanted = wanted_of(snapshot, user)
    one = ranked(snapshot, wanted)
    parts = contributions(snapshot, wanted.history, one.items[:5])
    for found, expected, score in zip(parts, system.recommend(user=user, k=5, use_llm=False), one.scores, strict=False):
        assert found == pytest.approx(expected.contributions, abs=1e-4)
        assert sum(found.values()) == pytest.approx(score, abs=1e-4)


def test_no_mask_where_everything_is_allowed(snapshot):
    assert mask_of(snapshot, Wanted(()), 0.0) is None
    assert mask_of(snapshot, Wanted((), exclude=frozenset({3})), 0.0).sum() == snapshot.num_items - 1
