"""The language model in a process of its own: asked within a deadline, and left out of an answer where it misses it."""

import logging
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Lock, Thread
from time import monotonic, sleep
from typing import Any, NamedTuple

import numpy as np
import torch

from allrec.hybrid.features import histories_of
from allrec.hybrid.ranking import LlmReader, Scored
from allrec.runs.run_folder import RunFolder
from allrec.runs.trained_model import TrainedModel
from allrec.serving.ranking import DEPTH, Ranked, Wanted, best_of, log_factor, mask_of, scored_of
from allrec.serving.snapshots import Snapshot

RESTART_SECONDS = (1.0, 5.0, 30.0)
"""Pauses before a process that ended is started again; the last one counts from then on."""
logger = logging.getLogger("allrec.serving")


class LlmUnavailableError(Exception):
    """The language model has no part in this answer; the message says why."""


class Call(NamedTuple):
    """What the process is asked.

    Attributes:
        number: of the call; answers that come after their deadline are told apart by it.
        name: "score", "fits" or "join".
        arguments: of that.
    """

    number: int
    name: str
    arguments: tuple[Any, ...]


class LlmProcess:
    """Asks a language model in another process. Safe to share between threads; it reads for one request at a time.

    Args:
        run: the folder of the run.
        target: what runs in the process, for tests.
    """

    def __init__(self, run: str, target: Callable[[Connection, str], None] | None = None) -> None:
        self.run, self._target = run, target or answer_calls
        self._turn, self._number, self._answered, self._joined = Lock(), 0, 0, 0
        self._is_closed, self._is_ready, self._num_starts = False, False, 0
        self._start()

    @property
    def is_ready(self) -> bool:
        """Whether the model is loaded and the process lives."""
        return self._is_ready and self._process.is_alive()

    @property
    def process_id(self) -> int | None:
        """Of the process."""
        return self._process.pid

    def order(self, snapshot: Snapshot, wanted: Wanted, now: float, deadline: float) -> Ranked:
        """A request's items with the best of them ordered by the language model, as ``AllRec.recommend`` has it.

        Args:
            snapshot: of the request's tenant, over this process's run.
            wanted: the request.
            now: when it is answered, in seconds since 1970-01-01 UTC.
            deadline: until when it waits, by ``time.monotonic``.

        Raises:
            LlmUnavailableError: it is not loaded yet, is down, or was not done in time.
        """
        histories, mask = histories_of([np.array(wanted.history, np.int64)]), mask_of(snapshot, wanted, now)
        excepted = None if wanted.with_history else np.array([-1])
        scored = scored_of(snapshot, histories, excepted, [mask], wanted.k)
        if wanted.boost is not None:
            scored = scored._replace(scores=scored.scores + log_factor(snapshot, wanted, scored.items))
        with self._turn_until(deadline):
            self._join(snapshot, deadline)

            def ask_score(rows: np.ndarray, candidates: np.ndarray, name: str) -> np.ndarray:
                return self._call("score", ([np.array(wanted.history)] * len(rows), candidates, name), deadline)

            def ask_fits(candidates: np.ndarray) -> np.ndarray:
                return self._call("fits", (candidates,), deadline)

            reader = LlmReader(ask_score, ask_fits)
            read: Scored = snapshot.model.ranker.with_llm(scored, histories, reader, "catalogue")
        return best_of(read, 0, max(wanted.k, DEPTH))._replace(num_read=int(read.is_read.sum()))

    def close(self) -> None:
        """Ends the process."""
        self._is_closed, self._is_ready = True, False
        self._connection.close()
        self._process.terminate()
        self._process.join(10)

    def _turn_until(self, deadline: float) -> "Turn":
        if not self.is_ready:
            raise LlmUnavailableError("the language model is down or not loaded yet")
        if not self._turn.acquire(timeout=max(0.0, deadline - monotonic())):
            raise LlmUnavailableError("the language model was busy for as long as the budget allows")
        return Turn(self._turn)

    def _join(self, snapshot: Snapshot, deadline: float) -> None:
        """Lets the process know of the items that joined."""
        if self._joined != snapshot.joined_at:
            num_own = snapshot.served.model.catalogue.num_items
            self._call("join", (snapshot.added, snapshot.model.text_embeddings[num_own:]), deadline)
            self._joined = snapshot.joined_at

    def _call(self, name: str, arguments: tuple[Any, ...], deadline: float) -> Any:
        try:
            # A call behind one that came too late would come too late itself, and hold up the next one in turn.
            while self._answered < self._number:
                if not self._connection.poll(max(0.0, deadline - monotonic())):
                    raise LlmUnavailableError("the language model was busy for as long as the budget allows")
                self._answered, _, _ = self._connection.recv()
            self._number += 1
            self._connection.send(Call(self._number, name, arguments))
            while self._connection.poll(max(0.0, deadline - monotonic())):
                self._answered, is_good, value = self._connection.recv()
                if self._answered == self._number:
                    if is_good:
                        return value
                    raise LlmUnavailableError(f"the language model failed: {value}")
        except (EOFError, OSError):
            self._is_ready = False
            raise LlmUnavailableError("the language model's process ended") from None
        raise LlmUnavailableError("the language model was not done within the budget")

    def _start(self) -> None:
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=self._target, args=(other, self.run), daemon=True, name="allrec-llm")
        self._process.start()
        other.close()
        self._joined, self._answered = 0, self._number
        Thread(target=self._watch, args=(self._process,), daemon=True, name="llm-watch").start()

    def _watch(self, process: Any) -> None:
        """Waits until the model is loaded; starts the process again when it ends."""
        try:
            number, is_good, value = self._connection.recv()
            self._is_ready = is_good and number == 0
            if not is_good:
                logger.error("the language model cannot be loaded", extra={"reason": value})
        except (EOFError, OSError):
            self._is_ready = False
        process.join()
        self._is_ready = False
        if not self._is_closed:
            sleep(RESTART_SECONDS[min(self._num_starts, len(RESTART_SECONDS) - 1)])
            self._num_starts += 1
            with self._turn:
                if not self._is_closed:
                    logger.warning("the language model's process ended and is started again")
                    self._start()


class Turn:
    """A lock that is held already, released at the end of a block."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def answer_calls(connection: Connection, run: str) -> None:
    """What the process does: loads the run with its language model, says so, and answers until the connection ends."""
    try:
        model = base = TrainedModel.load(RunFolder.open(run))
        _ = base.titles
        connection.send((0, True, None))
    except Exception as error:
        connection.send((0, False, str(error)))
        return
    while True:
        try:
            number, name, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            value = None
            with torch.no_grad():
                if name == "join":
                    items, embeddings = arguments
                    model = base.with_items(items, embeddings) if items.item_ids else base
                else:
                    value = model.llm_scores(*arguments) if name == "score" else model.titles.fits_each(*arguments)
            connection.send((number, True, value))
        except Exception as error:
            connection.send((number, False, f"{type(error).__name__}: {error}"))
