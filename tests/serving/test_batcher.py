"""Requests together: all are answered in their order, one at fault fails alone, and closing answers what waits."""

from threading import Event

import pytest

from allrec.serving.batching import Batcher


def test_what_waits_while_a_batch_is_answered_is_answered_together():
    begun, go_on, batches = Event(), Event(), []

    def answer(requests):
        batches.append(list(requests))
        begun.set()
        go_on.wait(10)
        return [request * 2 for request in requests]

    batcher = Batcher(answer, largest=3)
    futures = [batcher.submit(1)]
    begun.wait(10)
    futures += [batcher.submit(number) for number in range(2, 7)]
    assert batcher.num_waiting == 5
    go_on.set()
    assert [future.result(10) for future in futures] == [2, 4, 6, 8, 10, 12]
    assert batches == [[1], [2, 3, 4], [5, 6]]
    assert batcher.largest_seen == 3
    batcher.close()


def test_a_request_at_fault_fails_alone():
    begun, go_on = Event(), Event()

    def answer(requests):
        begun.set()
        go_on.wait(10)
        return [10 // request for request in requests]

    batcher = Batcher(answer)
    first = batcher.submit(5)
    begun.wait(10)
    futures = [batcher.submit(number) for number in (1, 0, 2)]
    go_on.set()
    assert [first.result(10), futures[0].result(10), futures[2].result(10)] == [2, 10, 5]
    with pytest.raises(ZeroDivisionError):
        futures[1].result(10)
    batcher.close()


def test_closing_answers_what_waits_and_takes_no_more():
    batcher = Batcher(lambda requests: list(requests))
    futures = [batcher.submit(number) for number in range(100)]
    batcher.close()
    assert [future.result(0) for future in futures] == list(range(100))
    with pytest.raises(RuntimeError, match="stopping"):
        batcher.submit(1)
