"""Parts of a task in threads of their own."""

import threading
import time

import pytest
import torch

from allrec.parallel import ordered_map


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_keep_their_order_whichever_is_done_first(threads):
    def slow_if_even(part):
        time.sleep(0.02 * (part % 2 == 0))
        return part**2

    assert list(ordered_map(slow_if_even, range(7))) == [part**2 for part in range(7)]
    assert list(ordered_map(slow_if_even, [])) == []
    assert torch.get_num_threads() == threads


def test_parts_run_at_the_same_time_with_a_thread_each():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        meeting = threading.Barrier(2, timeout=20)

        def meet(part):
            meeting.wait()
            return torch.get_num_threads(), torch.is_grad_enabled()

        assert list(ordered_map(meet, range(4))) == [(1, False)] * 4
        born = []
        late = threading.Thread(target=lambda: born.append(torch.get_num_threads()))
        late.start()
        late.join()
        assert (torch.get_num_threads(), born) == (2, [2])
    finally:
        torch.set_num_threads(before)


def test_one_part_has_all_threads_to_itself(threads):
    here = threading.get_ident()
    assert list(ordered_map(lambda part: (threading.get_ident(), torch.get_num_threads()), [0])) == [(here, threads)]


def test_few_parts_are_done_before_they_are_asked_for(threads):
    begun = []
    results = ordered_map(begun.append, range(100))
    next(results)
    time.sleep(0.1)
    assert len(begun) <= threads + 3
    results.close()
    assert len(begun) <= threads + 3


def test_an_error_of_a_part_is_raised_after_the_parts_before_it(threads):
    def work(part):
        if part == 2:
            raise ValueError("part 2")
        return part

    results, found = ordered_map(work, range(5)), []
    with pytest.raises(ValueError, match="part 2"):
        found.extend(results)
    assert found == [0, 1]
    assert torch.get_num_threads() == threads


def test_many_threads_are_shared_by_four_parts():
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    try:
        assert list(ordered_map(lambda part: torch.get_num_threads(), range(6))) == [2] * 6
    finally:
        torch.set_num_threads(before)


def test_a_task_within_a_part_waits_for_nobody():
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    def inner(part):
        return list(ordered_map(lambda each: (threading.get_ident(), each), range(3), threads=2))

    try:
        found = list(ordered_map(inner, range(4)))
    finally:
        torch.set_num_threads(before)
    assert all(len({ident for ident, _ in each}) == 1 and [part for _, part in each] == [0, 1, 2] for each in found)
