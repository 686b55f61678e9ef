"""A run answers some users as it did when it was trained or first published: weights that were exchanged show."""

from typing import Any

import numpy as np

from allrec.errors import InputError
from allrec.files import read_json, write_json
from allrec.hybrid.features import histories_of
from allrec.runs.trained_model import TrainedModel

ANSWERS = "answers.json"
"""In the run's folder; of a refitted run in that of its refitted parts."""
USERS, BEST = 10, 10
TOLERANCE = 1e-3
"""Of scores, in logits and as a share: what machines and numbers of threads make of one run differs less."""


def check_answers(model: TrainedModel) -> None:
    """Sees that a run answers as it did; at the first time, its answers are stored.

    Raises:
        InputError: it answers otherwise.
        OSError, FullError: there are no stored answers, and its folder cannot be written.
    """
    file, got = model.run.path / ANSWERS, answers_of(model)
    expected = read_json(file) if file.is_file() else None
    # Items that were added since change what is best.
    if expected is None or expected["num_items"] != got["num_items"]:
        write_json(file, got)
        return
    for now, then in zip(got["users"], expected["users"], strict=True):
        if not is_same(now, then):
            raise InputError(
                f"{model.run.path} does not answer user {then['user_id']!r} as it did: {now['items'][:3]}, expected "
                f"{then['items'][:3]}. Publish another run; or remove {file} where this one was changed on purpose."
            )


def answers_of(model: TrainedModel) -> dict[str, Any]:
    """The best items of some users with their scores, without the language model."""
    catalogue = model.catalogue
    num_users = len(catalogue.user_ids)
    users = np.unique(np.linspace(0, num_users - 1, min(USERS, num_users)).astype(int)).tolist()
    if not users:
        return {"num_items": catalogue.num_items, "users": []}
    histories, excepted = histories_of([catalogue.history(user) for user in users]), np.full(len(users), -1)
    scored = next(model.ranker.rank_catalogue(histories, excepted, depth=BEST))
    if (scored.items >= 0).sum(axis=1).min() < BEST:
        scored = model.backbone_ranker.filled(scored, histories, excepted)
    rows = []
    for row, (user, places) in enumerate(zip(users, scored.best(BEST), strict=True)):
        kept = places[scored.items[row, places] >= 0]
        items = [catalogue.item_ids[item] for item in scored.items[row, kept].tolist()]
        scores = scored.scores[row, kept].astype(float).tolist()
        rows.append({"user_id": catalogue.user_ids[user], "items": items, "scores": scores})
    return {"num_items": catalogue.num_items, "users": rows}


def is_same(now: dict[str, Any], then: dict[str, Any]) -> bool:
    """Whether two answers to a user are one: scores close, and the same items but for those that tie."""
    if now["user_id"] != then["user_id"] or len(now["scores"]) != len(then["scores"]):
        return False
    scores, expected = np.array(now["scores"]), np.array(then["scores"])
    if not np.allclose(scores, expected, rtol=TOLERANCE, atol=TOLERANCE):
        return False
    places = {item: place for place, item in enumerate(then["items"])}
    last = expected.min(initial=np.inf)
    for item, score in zip(now["items"], scores.tolist(), strict=True):
        own = expected[places[item]] if item in places else last
        if abs(own - score) > TOLERANCE * (1 + abs(score)):
            return False
    return True
