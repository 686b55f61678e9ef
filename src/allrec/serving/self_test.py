"""A run answers some users as it did when it was published, or it does not serve: weights that were exchanged show."""

import logging
from typing import Any

import numpy as np

from allrec.errors import InputError
from allrec.files import read_json, write_json
from allrec.serving.ranking import RequestRanker, Wanted
from allrec.serving.snapshots import Served, Snapshot

ANSWERS = "answers.json"
"""In the run's folder, written when it is published first."""
USERS, BEST = 10, 10
TOLERANCE = 1e-3
"""Of scores, in logits and as a share: what machines and numbers of threads make of one run differs less."""
logger = logging.getLogger("allrec.serving")


def load_checked(run: str, version: int) -> Snapshot:
    """Reads a run, and sees that it answers as it did; where it has never been asked, writes down what it answers.

    Raises:
        InputError: no run there, a damaged one, or one that answers otherwise than when it was published.
    """
    snapshot = Snapshot.first(Served.load(run, version))
    file, got = snapshot.model.run.path / ANSWERS, answers_of(snapshot)
    expected = read_json(file) if file.is_file() else None
    # Items that were added since change what is best.
    if expected is not None and expected["num_items"] == got["num_items"]:
        for now, then in zip(got["users"], expected["users"], strict=True):
            if not is_same(now, then):
                raise InputError(
                    f"{run} does not answer user {then['user_id']!r} as it did when it was published: "
                    f"{now['items'][:3]}, expected {then['items'][:3]}. Publish another run; or remove {file} where "
                    "this one was changed on purpose."
                )
        return snapshot
    try:
        write_json(file, got)
    except OSError as error:
        logger.warning("the answers of a run cannot be kept beside it", extra={"run": run, "reason": str(error)})
    return snapshot


def answers_of(snapshot: Snapshot) -> dict[str, Any]:
    """The best items of some users with their scores, from the run alone."""
    catalogue = snapshot.model.catalogue
    num_users = len(catalogue.user_ids)
    users = np.unique(np.linspace(0, num_users - 1, min(USERS, num_users)).astype(int)).tolist()
    wanted = [Wanted(tuple(catalogue.history(user).tolist()), k=BEST) for user in users]
    rows: list[dict[str, Any]] = []
    for user, ranked in zip(users, RequestRanker().rank(snapshot, wanted, 0.0), strict=True):
        items = [catalogue.item_ids[item] for item in ranked.items[:BEST].tolist()]
        rows.append({"user_id": catalogue.user_ids[user], "items": items, "scores": ranked.scores[:BEST].tolist()})
    return {"num_items": snapshot.num_items, "users": rows}


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
