"""A process's service: the tenants' snapshots, kept as fresh as the store, and requests answered together."""

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock, Thread
from time import time
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from allrec.alignment.text_cache import default_cache
from allrec.errors import InputError
from allrec.serving.batching import Batcher
from allrec.serving.expressions import Kind
from allrec.serving.llm_process import LlmProcess, LlmUnavailableError
from allrec.serving.ranking import Ranked, RequestRanker, Wanted, diversified, log_factor, mask_of
from allrec.serving.records import check_tenant
from allrec.serving.snapshots import Served, Snapshot, behind, load_checked
from allrec.serving.store import ModelVersion, Store
from allrec.serving.store_users import digest_of

DEFAULT_TENANT = "default"
OVERHEAD = 0.1
"""Seconds of a budget that are left for writing the answer."""
SWEEP_SECONDS = 3_600
HISTORY = 500
"""Latest events of a user that count."""
logger = logging.getLogger("allrec.serving")


@dataclass(frozen=True)
class Request:
    """A request for recommendations, as it comes.

    Attributes:
        tenant: whose it is.
        user_id: whom it is for; None for a bare history.
        history: item ids, oldest first, in place of the user's own; None takes that.
        context: an item that the user looks at, for the fallback to similar items.
        settings: k, filter, boost, diversity, with_history of ``Wanted``.
        exclude: item ids that are left out.
        budget: seconds that the answer may take; 0 leaves the language model out.
        begin: when it came, by ``time.monotonic``.
    """

    tenant: str
    user_id: str | None = None
    history: tuple[str, ...] | None = None
    context: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    budget: float = 0.0
    begin: float = 0.0


@dataclass(frozen=True)
class Answered:
    """What a request is answered.

    Attributes:
        snapshot: by which it was ranked.
        wanted: the request, in positions.
        ranked: the items.
        scorer: what ordered them: "fusion" or "cf", "llm" where the language model read the best, "similar", "popular".
        fallback: why it is not what was asked for first; None where it is.
        llm: what became of the language model: "ordered", "not asked", or why it had no part.
    """

    snapshot: Snapshot
    wanted: Wanted
    ranked: Ranked
    scorer: str
    fallback: str | None = None
    llm: str = "not asked"


class Tenant:
    """What one process knows of a tenant.

    Attributes:
        snapshot: the latest; replaced, never changed.
        ranker: keeps rankings.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot, self.ranker = snapshot, RequestRanker()
        self.lock = Lock()
        self.loading: int | None = None
        self.failed: dict[int, str] = {}


class Service:
    """Answers requests of all tenants in one process.

    Args:
        store: of all tenants.
        run: folder of the default tenant's run.
        cache: folder of cached text embeddings.
        with_llm: whether the default tenant's language model is started.

    Attributes:
        on_switched: called when another run begins to serve a tenant, by the thread that loaded it.

    Raises:
        InputError: no run there, or a damaged one.
    """

    def __init__(self, store: Store, run: Path | str, *, cache: Path | None = None, with_llm: bool = True) -> None:
        self.store, self.cache = store, cache or default_cache()
        self.runs_root = Path(run).resolve().parent
        published = published_run(store, str(Path(run).resolve()))
        snapshot = load_checked(published.run, published.version)
        self.tenants = {DEFAULT_TENANT: Tenant(snapshot)}
        self.lock = Lock()
        self.llm_wanted, self.llm = with_llm, self._new_llm(snapshot.served) if with_llm else None
        self.batcher: Batcher[Request, Answered | InputError] = Batcher(self.answer)
        self.on_switched: Callable[[], None] = _nothing

    def close(self) -> None:
        """Answers what waits, and ends the language model's process; the store stays open."""
        self.batcher.close()
        if self.llm is not None:
            self.llm.close()

    def runs_of(self, tenant: str) -> Path:
        """The folder of the runs that a tenant may publish: beside the default tenant's, a folder for each other."""
        return self.runs_root if tenant == DEFAULT_TENANT else self.runs_root / check_tenant(tenant)

    def submit(self, request: Request) -> "Future[Answered | InputError]":
        """A future of the answer, without the language model."""
        return self.batcher.submit(request)

    # Freshness.

    def tenant(self, name: str) -> Tenant:
        """A tenant, whose snapshot is as new as the store at this call.

        Raises:
            InputError: there is no such tenant, or its run cannot be loaded.
        """
        tenant = self.tenants.get(name)
        if tenant is None:
            tenant = self._open(name)
        self._follow_model(name, tenant)
        version = self.store.items_version(name)
        if version != tenant.snapshot.version:
            with tenant.lock:
                tenant.snapshot = self._fresh(name, tenant.snapshot)
        return tenant

    def _open(self, name: str) -> Tenant:
        with self.lock:
            if name not in self.tenants:
                published = self.store.serving(name)
                if published is None:
                    raise InputError(f"tenant {name!r} has no run. Publish one: POST /v1/models.")
                self.tenants[name] = Tenant(load_checked(published.run, published.version))
            return self.tenants[name]

    def _fresh(self, name: str, snapshot: Snapshot) -> Snapshot:
        version, changed = self.store.items_changed(name, since_version=snapshot.version)
        return snapshot.after(version, changed, self.cache) if changed else snapshot

    def _follow_model(self, name: str, tenant: Tenant) -> None:
        """Begins to load what was published; requests are answered by what is loaded until then."""
        published = self.store.serving(name)
        if published is None or published.version == tenant.snapshot.served.version:
            return
        with tenant.lock:
            if tenant.loading == published.version or published.version in tenant.failed:
                return
            tenant.loading = published.version
        Thread(target=self._switch, args=(name, tenant, published), daemon=True, name="switch").start()

    def _switch(self, name: str, tenant: Tenant, published: ModelVersion) -> None:
        try:
            loaded = self._fresh(name, load_checked(published.run, published.version))
        except Exception as error:
            logger.exception("a published run cannot be loaded", extra={"run": published.run})
            tenant.failed[published.version] = str(error)
            tenant.loading = None
            return
        with tenant.lock:
            # What changed while it was loaded; a request that comes from now on must not see less than one before it.
            tenant.snapshot = self._fresh(name, loaded)
            tenant.ranker, tenant.loading = RequestRanker(), None
        if name == DEFAULT_TENANT and self.llm is not None:
            old, self.llm = self.llm, self._new_llm(loaded.served)
            old.close()
        self.on_switched()

    def _new_llm(self, served: Served) -> LlmProcess | None:
        model = served.model
        has_say = model.is_llm_within_reach and bool(model.ranker.llm_names("catalogue"))
        return LlmProcess(str(model.run.path)) if has_say else None

    # Answers.

    def answer(self, requests: Sequence[Request]) -> list[Answered | InputError]:
        """Answers requests together, without the language model; one at fault has its error in place of an answer."""
        found: list[Answered | InputError | None] = [None] * len(requests)
        for name in {request.tenant for request in requests}:
            rows = [row for row, request in enumerate(requests) if request.tenant == name]
            try:
                tenant = self.tenant(name)
            except InputError as error:
                for row in rows:
                    found[row] = error
                continue
            now, snapshot, ranker = time(), tenant.snapshot, tenant.ranker
            resolved: list[Answered] = []
            masks: list[Bool[ndarray, "items"] | None] = []
            good: list[int] = []
            users = [requests[row].user_id for row in rows]
            known = self.user_histories(snapshot, name, [user_id for user_id in users if user_id is not None])
            for row in rows:
                try:
                    one = self._resolved(snapshot, requests[row], known)
                    masks.append(mask_of(snapshot, one.wanted, now))
                    resolved.append(one)
                    good.append(row)
                except InputError as error:
                    found[row] = error
            ranked = ranker.rank(snapshot, [one.wanted for one in resolved], masks)
            for row, one, items in zip(good, resolved, ranked, strict=True):
                found[row] = replace(one, ranked=items)
        return [one for one in found if one is not None]

    def _resolved(self, snapshot: Snapshot, request: Request, known: Mapping[str, tuple[int, ...]]) -> Answered:
        """A request in positions, along the chain: user, session, similar items, popular ones."""
        history, fallback = history_of(snapshot, request, known)
        user = self.user_fields(snapshot, request)
        exclude = frozenset(snapshot.positions(request.exclude).tolist())
        scorer = "cf" if snapshot.model.fused_ranker is None else "fusion"
        if not history:
            context = snapshot.positions([request.context] if request.context else [])
            history = tuple(context.tolist())
            scorer = "similar" if history else "popular"
            what = "items similar to the one looked at" if history else "popular items"
            fallback = f"{fallback or 'no history was given'}: {what}"
        wanted = Wanted(history, exclude=exclude, user=user, **request.settings)
        if wanted.boost is not None:
            log_factor(snapshot, wanted, np.zeros(0, np.int64))
        return Answered(snapshot, wanted, Ranked(np.zeros(0, np.int64), np.zeros(0)), scorer, fallback)

    def user_histories(self, snapshot: Snapshot, tenant: str, user_ids: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """What the run knows of each user, and the store's events behind it, oldest first, in positions."""
        catalogue, user_ids = snapshot.model.catalogue, [*dict.fromkeys(user_ids)]
        users = {user_id: catalogue.user_or_none(user_id) for user_id in user_ids}
        erased = self.store.erased(tenant, [user_id for user_id, user in users.items() if user is not None])
        events = self.store.histories(tenant, user_ids, limit=HISTORY)
        found = {}
        for user_id, user in users.items():
            known = [] if user is None or user_id in erased else catalogue.history(user).tolist()
            own = snapshot.positions([event.item_id for event in events.get(user_id, [])]).tolist()
            # A run that was refreshed learned from events, and has them already.
            found[user_id] = (*known, *(behind(known, own) if snapshot.served.is_refreshed else own))
        return found

    def user_history(self, snapshot: Snapshot, tenant: str, user_id: str) -> tuple[int, ...]:
        """``user_histories`` of one."""
        return self.user_histories(snapshot, tenant, [user_id])[user_id]

    def user_fields(self, snapshot: Snapshot, request: Request) -> dict[str, Any]:
        """Fields of the user, where an expression reads them."""
        kinds: tuple[Kind, ...] = ("filter", "boost")
        texts = {kind: text for kind in kinds if (text := request.settings.get(kind)) is not None}
        asks = any(snapshot.expressions.compiled(kind, text).asks_user for kind, text in texts.items())
        if not asks or request.user_id is None:
            return {}
        return self.store.user_fields(request.tenant, request.user_id) or {}

    def left_out_of(self, tenant: str, item_id: str) -> Callable[[str], bool]:
        """Whether a user is not to be named where users are sought for an item: erased, or has an event with it."""
        erased, owners = self.store.erased_digests(tenant), self.store.users_of(tenant, item_id)
        return lambda user_id: user_id in owners or digest_of(user_id) in erased

    def with_llm(self, answered: Answered, request: Request) -> Answered:
        """The same answer, the best ordered by the language model; or the answer itself, with the reason why not."""
        if request.budget <= 0 or not answered.wanted.history:
            return answered
        if self.llm is None or request.tenant != DEFAULT_TENANT:
            return replace(answered, llm="the run's language model has no say, or none is started")
        if answered.snapshot.served is not self.tenants[DEFAULT_TENANT].snapshot.served:
            return replace(answered, llm="the model was switched while the request was answered")
        deadline = request.begin + request.budget - OVERHEAD
        try:
            ranked = self.llm.order(answered.snapshot, answered.wanted, time(), deadline)
        except LlmUnavailableError as error:
            return replace(answered, llm=str(error))
        if not ranked.num_read:
            return replace(answered, llm="there were no candidates to read")
        if answered.wanted.diversity > 0:
            ranked = diversified(answered.snapshot, ranked, answered.wanted.diversity)
        ordered = replace(answered, ranked=ranked, scorer="llm", llm="ordered")
        return self.still_available(ordered, request.tenant)

    def still_available(self, answered: Answered, tenant: str) -> Answered:
        """The same answer without what became unavailable while it was made."""
        newest = self.tenant(tenant).snapshot
        if newest.version == answered.snapshot.version:
            return answered
        ids = [answered.snapshot.model.catalogue.item_ids[item] for item in answered.ranked.items]
        places, available = newest.model.catalogue.positions_of(ids), newest.available(time())
        is_left = np.array([place is not None and available[place] for place in places], bool)
        ranked = answered.ranked._replace(items=answered.ranked.items[is_left], scores=answered.ranked.scores[is_left])
        return replace(answered, ranked=ranked)


def history_of(
    snapshot: Snapshot, request: Request, known: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[int, ...], str | None]:
    """Positions of a user's or a session's history, and why it is not the user's own where that was asked for.

    Args:
        snapshot: of the request's tenant.
        request: names a user, a history, both or neither.
        known: ``Service.user_histories`` of the user at least.
    """
    session = snapshot.positions(request.history or ()).tolist()
    if request.user_id is not None and known[request.user_id]:
        return (*known[request.user_id], *session), None
    missing = "the user has no history" if request.user_id is not None else None
    if request.history and not session:
        missing = "no item of the history is known"
    return tuple(session), f"{missing}: the session" if session and missing else missing


def _nothing() -> None:
    """Takes no notice."""


def settle_memory() -> None:
    """Leaves all that is there now out of later garbage collections, what is no longer used gone.

    A catalogue is many objects, and each full collection that looks at them holds up every answer for a third of a
    second. What was left out before is looked at once, so that an earlier run's model goes.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def published_run(store: Store, run: str) -> ModelVersion:
    """What serves the default tenant: the run of the command line where it is new to the store, else the latest.

    So a restart with the same command keeps what was published since, and one with another run serves that.
    """
    known = {version.run for version in store.model_history(DEFAULT_TENANT)}
    serving = store.serving(DEFAULT_TENANT)
    return serving if serving is not None and run in known else store.put_tenant(DEFAULT_TENANT, run=run)


class Retention:
    """Deletes what is older than the retention period, once an hour.

    Args:
        service: knows the tenants.
        days: that events, answers and feedback are kept.
    """

    def __init__(self, service: Service, days: float) -> None:
        self._service, self._seconds, self._is_closing = service, days * 86_400, Event()
        self._thread = Thread(target=self._run, daemon=True, name="retention")
        self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._is_closing.set()
        self._thread.join()

    def sweep(self, now: float) -> int:
        """Deletes what is too old at a time, in seconds since 1970-01-01 UTC, and says how many rows."""
        store, before = self._service.store, now - self._seconds
        names = store.tenant_names()
        return sum(store.drop_events(one, before=before) + store.drop_answers(one, before=before) for one in names)

    def _run(self) -> None:
        while not self._is_closing.wait(SWEEP_SECONDS):
            try:
                logger.info("retention", extra={"deleted": self.sweep(time())})
            except Exception:
                logger.exception("what is too old was not deleted")
