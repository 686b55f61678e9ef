"""From what was ranked to what is answered: titles, reasons, further pages, and the record of what was given."""

import base64
import json
import logging
import secrets
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from threading import Event, Thread
from time import time
from typing import Any

from jaxtyping import Int
from numpy import ndarray
from torch.nn import functional

from allrec.data.items import flatten
from allrec.errors import InputError
from allrec.hybrid.features import families
from allrec.serving.monitoring import Figures
from allrec.serving.ranking import Wanted, contributions, mask_of
from allrec.serving.service import Answered
from allrec.serving.snapshots import Snapshot
from allrec.serving.store import Answer, Store

LARGEST_PAGE = 100_000
"""Bytes of a page's token, unpacked."""
RECORDED_TOGETHER, RECORDED_WAITING = 500, 20_000
logger = logging.getLogger("allrec.serving")

REASONS = {
    "cf": "chosen by people with a similar history",
    "joint": "fits the history by who chose it and by its text",
    "content": "often chosen together with items like those of the history",
    "text": "its text is like that of {item}",
    "words": "shares words with {item}",
    "neighbours": "often chosen together with {item}",
    "history": "was in the history before",
    "popularity": "is popular",
    "llm": "the language model finds it likely after this history",
    "interplay": "several signs agree on it",
}


UNEXPLAINED = {
    "popular": "is popular",
    "similar": "is like the item looked at",
    "text": "its text fits the query",
    "text and fusion": "its text fits the query, and it fits the history",
    "text and cf": "its text fits the query, and it fits the history",
}
"""Reasons where no evidence tells one, by scorer."""


@dataclass(frozen=True)
class Page:
    """What is left of an answer, whole within its token, so that any worker gives the next page.

    Attributes:
        recommendation_id: of the answer.
        scores: of the items still to come, by id and in their order.
        k: items a page.
        settings: the filter, and whose fields it reads: what decides whether an item may be given.
        answer: scorer, fallback, model version.
    """

    recommendation_id: str
    scores: dict[str, float]
    k: int
    settings: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] = field(default_factory=dict)

    def pack(self) -> str:
        """The token."""
        return base64.urlsafe_b64encode(zlib.compress(json.dumps(vars(self)).encode())).decode()

    @classmethod
    def unpack(cls, token: str) -> "Page":
        """Reads a token.

        Raises:
            InputError: it is none.
        """
        try:
            stream = zlib.decompressobj()
            unpacked = stream.decompress(base64.urlsafe_b64decode(token), LARGEST_PAGE)
            page = cls(**json.loads(unpacked if stream.eof else b""))
            is_good = 1 <= page.k <= 100 and isinstance(page.settings, dict)
            is_good &= all(isinstance(one, str | None) for one in page.settings.values())
            is_good &= all(isinstance(one, str) for one in [*page.scores, page.recommendation_id])
            is_good &= all(isinstance(one, float) for one in page.scores.values())
            is_good &= {"scorer", "fallback", "model_version"} <= {*page.answer}
        except (ValueError, TypeError, AttributeError, zlib.error, RecursionError):
            is_good = False
        if not is_good:
            raise InputError("got a page that is none, expected next_page of an answer. Ask without it to begin anew.")
        return page


def new_id() -> str:
    """A recommendation's id: 128 random bits."""
    return secrets.token_hex(16)


def described(snapshot: Snapshot, items: Sequence[int], scores: Sequence[float]) -> list[dict[str, Any]]:
    """Items as an answer gives them."""
    catalogue, is_cold = snapshot.model.catalogue, snapshot.model.is_cold
    return [
        {
            "item_id": catalogue.item_ids[item],
            "title": flatten(snapshot.items.fields[item].get("title")) or None,
            "score": float(score) + 0.0,  # no minus zero
            "is_cold": bool(is_cold[item]),
        }
        for item, score in zip(items, scores, strict=True)
    ]


def with_reasons(answered: Answered, rows: list[dict[str, Any]], items: Int[ndarray, "items"]) -> list[dict[str, Any]]:
    """The same items, each with what adds to its score and a sentence of the largest part."""
    history = answered.wanted.history
    parts = contributions(answered.snapshot, history, items) if answered.scorer in ("fusion", "llm") else None
    for row, item, part in zip(rows, items.tolist(), parts or [{}] * len(rows), strict=True):
        sums = families(part)
        # What says the same of every item of an answer is no reason for one of them.
        telling = {name: value for name, value in sums.items() if name in REASONS and value > 0}
        row["contributions"] = sums or None
        strongest = max(telling, key=lambda name: telling[name]) if telling else None
        row["reason"] = reason_of(answered.snapshot, strongest, history, item, answered.scorer)
    return rows


def reason_of(snapshot: Snapshot, family: str | None, history: Sequence[int], item: int, scorer: str) -> str:
    """Why an item is there, in a sentence."""
    if family is None:
        return UNEXPLAINED.get(scorer, "fits the history")
    sentence = REASONS[family]
    if "{item}" not in sentence:
        return sentence
    latest = list(history)[-20:]
    texts = functional.normalize(snapshot.model.text_embeddings[[*latest, item]], dim=1)
    nearest = latest[int((texts[:-1] @ texts[-1]).argmax())]
    title = snapshot.items.fields[nearest].get("title") or snapshot.model.catalogue.item_ids[nearest]
    return sentence.format(item=f"“{str(title)[:80]}”")


def body_of(
    answered: Answered,
    recommendation_id: str,
    *,
    user_id: str | None = None,
    with_reason: bool = False,
    group: str | None = None,
) -> dict[str, Any]:
    """An answer's first page."""
    k, ranked, snapshot = answered.wanted.k, answered.ranked, answered.snapshot
    rows = described(snapshot, ranked.items[:k].tolist(), ranked.scores[:k].tolist())
    if with_reason:
        rows = with_reasons(answered, rows, ranked.items[:k])
    answer = {"model_version": snapshot.served.version, "scorer": answered.scorer, "fallback": answered.fallback}
    left = zip(ranked.items[k:].tolist(), ranked.scores[k:].tolist(), strict=True)
    rest = {snapshot.model.catalogue.item_ids[item]: round(score, 4) for item, score in left}
    settings = {"filter": answered.wanted.filter, "user_id": user_id}
    page = Page(recommendation_id, rest, k, settings, answer).pack() if rest else None
    return {
        "recommendation_id": recommendation_id, **answer, "llm": answered.llm, "experiment_group": group,
        "items": rows, "next_page": page,
    }  # fmt: skip


def page_of(snapshot: Snapshot, page: Page, user: Mapping[str, Any]) -> dict[str, Any]:
    """An answer's further page: what of it is available now.

    Args:
        snapshot: of the tenant.
        page: what is left.
        user: fields of the user of its settings, as they are now.
    """
    ids, settings = list(page.scores), page.settings
    places = snapshot.positions(ids)
    wanted = Wanted((), filter=settings.get("filter"), user=dict(user))
    mask = mask_of(snapshot, wanted, time())
    places = places if mask is None else places[mask[places]]
    left = [snapshot.model.catalogue.item_ids[item] for item in places.tolist()]
    scores = {item_id: page.scores[item_id] for item_id in left}
    given = list(scores.values())[: page.k]
    rest = dict(list(scores.items())[page.k :])
    following = Page(page.recommendation_id, rest, page.k, settings, page.answer).pack() if rest else None
    rows = described(snapshot, places[: page.k].tolist(), given)
    return {
        "recommendation_id": page.recommendation_id, **page.answer, "llm": "not asked", "experiment_group": None,
        "items": rows, "next_page": following,
    }  # fmt: skip


class Recorder:
    """Writes answers to the store in the background, many in one transaction; an answer does not wait for it."""

    def __init__(self, store: Store, figures: Figures, pause: float = 0.5) -> None:
        self._store, self._figures, self._pause = store, figures, pause
        self._queue: Queue[tuple[str, Answer]] = Queue(RECORDED_WAITING)
        self._is_closing = Event()
        self._thread = Thread(target=self._run, daemon=True, name="recorder")
        self._thread.start()

    def add(self, tenant: str, answer: Answer) -> None:
        """Takes an answer; where too many wait it is left out and counted."""
        try:
            self._queue.put_nowait((tenant, answer))
        except Full:
            self._figures.unrecorded.inc()

    def close(self) -> None:
        """Writes what waits."""
        self._is_closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not (self._is_closing.wait(self._pause) and self._queue.empty()):
            while not self._queue.empty():
                self._write()

    def _write(self) -> None:
        taken: dict[str, list[Answer]] = {}
        try:
            for _ in range(RECORDED_TOGETHER):
                tenant, answer = self._queue.get_nowait()
                taken.setdefault(tenant, []).append(answer)
        except Empty:
            pass
        for tenant, answers in taken.items():
            try:
                self._store.add_answers(tenant, answers)
            except Exception:
                logger.exception("answers were not recorded")
                self._figures.unrecorded.inc(len(answers))
