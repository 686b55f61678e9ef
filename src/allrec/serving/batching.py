"""Requests that come together are answered together: one thread takes all that wait, and answers them at once."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")
TOGETHER = 64
"""Requests at most that are answered at once; with more, the first would wait for the last."""


class Batcher(Generic[Request, Answer]):
    """Answers requests of several threads by one function, in one thread of its own.

    It waits for nobody: while a batch is answered the next one gathers, so that batches grow with the load.

    Args:
        answer: answers of several requests, in their order. Where it fails for a batch, each request is tried alone, so
            that one that is at fault fails by itself.
        largest: number of requests at most that are answered at once.
    """

    def __init__(self, answer: Callable[[Sequence[Request]], Sequence[Answer]], largest: int = TOGETHER) -> None:
        self._answer, self._largest = answer, largest
        self._queue: SimpleQueue[tuple[Request, Future[Answer]] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="batcher", daemon=True)
        self._is_closed = False
        self.largest_seen = 0
        self._thread.start()

    def submit(self, request: Request) -> "Future[Answer]":
        """A future of the answer.

        Raises:
            RuntimeError: the batcher was closed.
        """
        if self._is_closed:
            raise RuntimeError("the service is stopping")
        future: Future[Answer] = Future()
        self._queue.put((request, future))
        return future

    @property
    def num_waiting(self) -> int:
        """Requests that nobody has begun to answer."""
        return self._queue.qsize()

    def close(self) -> None:
        """Answers what waits, and ends the thread."""
        self._is_closed = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        is_open = True
        while is_open:
            batch, is_open = self._take()
            if batch:
                self.largest_seen = max(self.largest_seen, len(batch))
                self._finish(batch)

    def _take(self) -> tuple[list[tuple[Request, "Future[Answer]"]], bool]:
        """All that waits, one request at least; False with the last batch before the end."""
        taken: list[tuple[Request, Future[Answer]]] = []
        try:
            entry = self._queue.get()
            while entry is not None:
                if entry[1].set_running_or_notify_cancel():
                    taken.append(entry)
                if len(taken) >= self._largest:
                    return taken, True
                entry = self._queue.get_nowait()
        except Empty:
            return taken, True
        return taken, False

    def _finish(self, batch: Sequence[tuple[Request, "Future[Answer]"]]) -> None:
        try:
            answers = self._answer([request for request, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for entry in batch:
                self._finish([entry])
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            future.set_result(answer)
