"""What the page shows: a user's recommendations side by side, with reasons; look-ups, figures, and how it runs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from time import monotonic, time
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from numpy import ndarray
from prometheus_client.samples import Sample

from allrec.hybrid.features import families, histories_of
from allrec.runs.run_folder import RunFolder
from allrec.serving.answers import described, reason_of
from allrec.serving.experiments import experiment_result
from allrec.serving.lookups import audiences_of, by_text, encoder_of, similar
from allrec.serving.monitoring import Figures
from allrec.serving.ranking import Ranked, RequestRanker, Wanted, contributions, mask_of
from allrec.serving.service import HISTORY, Answered, Request, Service
from allrec.serving.snapshots import Snapshot
from allrec.serving.store import Store
from allrec.serving.store_users import digest_of

SHOWN, LISTED = 8, 30
BARS = {
    "cf": "collaborative", "joint": "joint", "content": "content", "text": "text", "words": "words",
    "neighbours": "bought together", "history": "history", "popularity": "popularity", "llm": "language model",
    "interplay": "interplay",
}  # fmt: skip
"""Families of evidence as the page names them."""
MEASURED = ("HR@1", "NDCG@10", "MRR")


@dataclass(frozen=True)
class Bar:
    """One contribution, for a small bar of 100 units with its zero in the middle."""

    name: str
    value: float
    start: float
    width: float


@dataclass(frozen=True)
class Column:
    """One scorer's list.

    Attributes:
        title: of the column.
        rows: items, with bars and a reason where the fusion gives them.
        note: why it is empty, or what is to know.
    """

    title: str
    rows: list[dict[str, Any]]
    note: str = ""


@dataclass(frozen=True)
class View:
    """What was asked of the page."""

    user: str = ""
    history: list[str] = field(default_factory=list)
    search: str = ""
    query: str = ""
    item: str = ""


def columns_of(service: Service, snapshot: Snapshot, history: tuple[int, ...], tenant: str) -> list[Column]:
    """Lists by collaborative filter, text, language model and all together, of a history that is not empty."""
    wanted = Wanted(history, k=SHOWN)
    mask = mask_of(snapshot, wanted, time())
    (fused,) = RequestRanker().rank(snapshot, [wanted], [mask])
    answered = Answered(snapshot, wanted, fused, "fusion" if snapshot.model.fused_ranker else "cf")
    read = service.with_llm(answered, Request(tenant, budget=5.0, begin=monotonic()))
    llm = _explained(read) if read.llm == "ordered" else []
    return [
        Column("All together", _explained(answered)),
        Column("Collaborative filter", _plain(snapshot, collaborative(snapshot, history, mask))),
        Column("Text", _plain(snapshot, textual(snapshot, history, mask))),
        Column("Language model", llm, "" if llm else f"Not shown: {read.llm}."),
    ]


def collaborative(snapshot: Snapshot, history: tuple[int, ...], mask: Bool[ndarray, "items"] | None) -> Ranked:
    """The backbone's list."""
    histories, allowed = histories_of([np.array(history, np.int64)]), None if mask is None else mask[None]
    ranker = snapshot.model.backbone_ranker
    (scored,) = ranker.rank_catalogue(histories, np.array([-1]), depth=SHOWN, allowed=allowed)
    places = scored.best(SHOWN)[0]
    places = places[scored.items[0, places] >= 0]
    return Ranked(scored.items[0, places].astype(np.int64), scored.scores[0, places].astype(np.float64))


def textual(snapshot: Snapshot, history: tuple[int, ...], mask: Bool[ndarray, "items"] | None) -> Ranked:
    """Items whose texts are nearest to the mean of the latest ten items' texts."""
    texts = snapshot.model.text_embeddings[torch.tensor(history[-10:])].mean(dim=0, keepdim=True)
    allowed = np.ones(snapshot.num_items, bool) if mask is None else mask.copy()
    allowed[list(history)] = False
    return by_text(snapshot, texts, allowed)


def _plain(snapshot: Snapshot, ranked: Ranked) -> list[dict[str, Any]]:
    return described(snapshot, ranked.items[:SHOWN].tolist(), ranked.scores[:SHOWN].tolist())


def _explained(answered: Answered) -> list[dict[str, Any]]:
    """Items with bars of what adds to their score, and a reason."""
    snapshot, items, history = answered.snapshot, answered.ranked.items[:SHOWN], answered.wanted.history
    rows = described(snapshot, items.tolist(), answered.ranked.scores[:SHOWN].tolist())
    parts = [families(part) for part in contributions(snapshot, history, items) or []]
    largest = max((abs(value) for part in parts for value in part.values()), default=1.0)
    for row, item, part in zip(rows, items.tolist(), parts, strict=False):
        row["bars"] = bars_of(part, largest)
        telling = {name: value for name, value in part.items() if value > 0 and name in BARS}
        strongest = max(telling, key=lambda name: telling[name]) if telling else None
        row["reason"] = reason_of(snapshot, strongest, history, item, answered.scorer)
    return rows


def bars_of(part: dict[str, float], largest: float, num_shown: int = 3) -> list[Bar]:
    """The largest contributions as bars, in units of 1/100 of the width: to the right what speaks for the item."""
    shown = sorted(part, key=lambda name: -abs(part[name]))[:num_shown]
    widths = {name: 50 * abs(part[name]) / max(largest, 1e-9) for name in shown}
    return [
        Bar(BARS.get(name, name), part[name], 50.0 if part[name] >= 0 else 50 - widths[name], widths[name])
        for name in shown
    ]


def item_view(service: Service, snapshot: Snapshot, item_id: str, tenant: str) -> dict[str, Any] | None:
    """An item with its neighbours and the users to whom it would go; None where it is unknown."""
    places = snapshot.positions([item_id]).tolist()
    if not places:
        return None
    found = similar(snapshot, places[0], snapshot.available(time()))
    is_left_out = service.left_out_of(tenant, item_id)
    audience = audiences_of(snapshot.served).of(snapshot, places[0], SHOWN, is_left_out)
    return {
        "item": described(snapshot, places, [0.0])[0],
        "similar": _plain(snapshot, found),
        "users": [{"user_id": user, "score": score} for user, score in zip(*audience, strict=True)],
    }


def search_titles(snapshot: Snapshot, text: str) -> list[dict[str, Any]]:
    """Items whose title holds a text, those of most training interactions first."""
    text, counts = text.casefold(), snapshot.model.catalogue.train_counts
    rows = enumerate(snapshot.items.fields)
    places = [place for place, fields in rows if text in str(fields.get("title", "")).casefold()]
    places = sorted(places, key=lambda place: -counts[place])[:LISTED]
    return described(snapshot, places, [0.0] * len(places))


def by_query(snapshot: Snapshot, query: str) -> list[dict[str, Any]]:
    """Items for a free text."""
    return _plain(snapshot, by_text(snapshot, encoder_of(snapshot.served).encode([query]), snapshot.available(time())))


def some_users(service: Service, snapshot: Snapshot, tenant: str) -> list[str]:
    """A few users to begin with: those of the longest histories, which say most, without those who were erased."""
    catalogue, erased = snapshot.model.catalogue, service.store.erased_digests(tenant)
    longest = np.argsort(-np.diff(catalogue.offsets), kind="stable")
    known = (catalogue.user_ids[user] for user in longest)
    return list(islice((user_id for user_id in known if digest_of(user_id) not in erased), LISTED))


def history_of(service: Service, snapshot: Snapshot, view: View, tenant: str) -> tuple[int, ...]:
    """The history that the page is about: a user's, and behind it what was added by clicking."""
    own = service.user_history(snapshot, tenant, view.user) if view.user else ()
    return (*own, *snapshot.positions(view.history[-HISTORY:]).tolist())


def figures_of(snapshot: Snapshot) -> list[dict[str, Any]]:
    """What the run's own evaluation measured: the lead protocol's test rows of every scorer."""
    try:
        # The folder as published: a refitted run's own parts are never evaluated by themselves.
        results = RunFolder.open(snapshot.served.run).metrics()["results"]
    except (OSError, KeyError, ValueError):
        return []
    rows = [row for row in results if row.get("split") == "test" and row.get("segment") == "all"]
    protocol = "full" if any(row["protocol"] == "full" for row in rows) else rows[0]["protocol"] if rows else ""
    names: Sequence[str] = MEASURED
    return [
        {"scorer": row["scorer"], "protocol": protocol, "users": row["users"]}
        | {"values": {name: row[name] for name in names if name in row}}
        for row in rows
        if row["protocol"] == protocol
    ]


def experiments_of(store: Store, tenant: str) -> list[dict[str, Any]]:
    """Every experiment with its groups' rates and differences."""
    known = store.experiments(tenant)
    return [asdict(experiment_result(store, tenant, name)) | {"is_running": known[name].is_running} for name in known]


def state_of(service: Service, figures: Figures) -> list[tuple[str, str]]:
    """What is slow or failing now, in pairs of a name and what is known of it."""
    samples = [sample for metric in figures.registry.collect() for sample in metric.samples]
    llm = "none started" if service.llm is None else "ready" if service.llm.is_ready else "not ready"
    failed = sum(s.value for s in samples if _is_count(s) and s.labels["status"].startswith("5"))
    return [
        ("Requests waiting", str(service.batcher.num_waiting)),
        ("Requests answered since the start", f"{sum(s.value for s in samples if _is_count(s)):.0f}"),
        ("Requests that failed since the start", f"{failed:.0f}"),
        ("Mean time of a ranking since the start", _mean(samples, "ranking")),
        ("Mean time of the language model since the start", _mean(samples, "language model")),
        ("Language model", llm),
    ]


def _is_count(sample: Sample) -> bool:
    return sample.name == "allrec_request_seconds_count"


def _mean(samples: Sequence[Sample], step: str) -> str:
    own = {sample.name: sample.value for sample in samples if sample.labels.get("step") == step}
    count = own.get("allrec_step_seconds_count", 0)
    return f"{1e3 * own['allrec_step_seconds_sum'] / count:.0f} ms" if count else "none yet"
