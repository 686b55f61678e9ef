"""The language model in its own process: the same order as ``recommend``, and an answer without it when it is late."""

import os
import signal
from time import monotonic, sleep

import pytest
from tests.serving.test_request_ranking import ids, wanted_of

from allrec.serving import llm_process
from allrec.serving.llm_process import LlmProcess, LlmUnavailableError
from allrec.serving.records import Item


def wait_until(is_true, seconds=60):
    end = monotonic() + seconds
    while not is_true():
        assert monotonic() < end
        sleep(0.05)


def never_done(connection, run):
    """Loads at once, and then takes longer than any budget."""
    connection.send((0, True, None))
    while True:
        connection.recv()


def slow(connection, run):
    """Takes two seconds for each call, and then says how many it was sent."""
    connection.send((0, True, None))
    for num_calls in range(1, 10):
        number, _, _ = connection.recv()
        sleep(2)
        connection.send((number, False, f"{num_calls} calls"))


@pytest.fixture(scope="module")
def process(snapshot):
    process = LlmProcess(str(snapshot.model.run.path))
    wait_until(lambda: process.is_ready)
    yield process
    process.close()


def test_it_orders_as_recommend_does(process, snapshot, system):
    for user in system.model.catalogue.user_ids[:5]:
        ranked = process.order(snapshot, wanted_of(snapshot, user), 0.0, monotonic() + 60)
        expected = system.recommend(user=user, k=10)
        assert ids(snapshot, ranked) == [found.item_id for found in expected]
        assert ranked.num_read == sum(found.llm_log_prob is not None for found in expected)
        assert ranked.num_read > 1


def test_items_that_joined_are_read_too(process, snapshot, tmp_path):
    new = [Item(f"new-{number}", {"title": f"rose cream {number}", "price": 1.0}) for number in range(3)]
    after = snapshot.after(7, new, tmp_path)
    wanted = wanted_of(snapshot, snapshot.model.catalogue.user_ids[0], filter="price < 2.0")
    ranked = process.order(after, wanted, 0.0, monotonic() + 60)
    assert sorted(ids(after, ranked)) == ["new-0", "new-1", "new-2"]
    assert ranked.num_read == 3


def test_one_that_is_late_is_left_out_in_time(snapshot):
    process = LlmProcess(str(snapshot.model.run.path), never_done)
    wait_until(lambda: process.is_ready)
    begin = monotonic()
    wanted = wanted_of(snapshot, snapshot.model.catalogue.user_ids[0])
    with pytest.raises(LlmUnavailableError, match="not done within the budget"):
        process.order(snapshot, wanted, 0.0, monotonic() + 0.5)
    assert monotonic() - begin < 1.5
    process.close()


def test_nothing_more_is_sent_while_a_late_call_is_not_done(snapshot):
    process = LlmProcess(str(snapshot.model.run.path), slow)
    wait_until(lambda: process.is_ready)
    wanted = wanted_of(snapshot, snapshot.model.catalogue.user_ids[0])
    for budget, words in ((0.5, "not done within"), (0.5, "was busy"), (30.0, "failed: 2 calls")):
        with pytest.raises(LlmUnavailableError, match=words):
            process.order(snapshot, wanted, 0.0, monotonic() + budget)
    process.close()


def test_one_that_was_killed_is_started_again(snapshot, monkeypatch):
    monkeypatch.setattr(llm_process, "RESTART_SECONDS", (0.1,))
    process = LlmProcess(str(snapshot.model.run.path), never_done)
    wait_until(lambda: process.is_ready)
    first = process.process_id
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not process.is_ready or process.process_id != first)
    with pytest.raises(LlmUnavailableError):
        process.order(snapshot, wanted_of(snapshot, snapshot.model.catalogue.user_ids[0]), 0.0, monotonic() + 0.1)
    wait_until(lambda: process.is_ready and process.process_id != first)
    process.close()
