"""Engines of one machine: the same files, a killed worker's part done again, nothing done twice."""

import itertools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.remedies import refused

from allrec.errors import InputError
from allrec.files import atomic_path, is_running
from allrec.parallel import AHEAD, Needs, Processes, ThisProcess
from cluster.shard_work import Upper, lines_of, pid_after, write_shards


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


@pytest.fixture(scope="module")
def two():
    return Processes(2)


def test_every_engine_writes_the_same_files_in_the_order_of_the_shards(tmp_path, two):
    shards = write_shards(tmp_path / "in", 5)
    found = {}
    for name, engine in (("here", ThisProcess()), ("processes", two)):
        work = Upper(str(tmp_path / name), str(tmp_path / f"{name}.log"))
        paths = list(engine.map(work, shards))
        assert [Path(path).read_text() for path in paths] == [f"SHARD {number}" for number in range(5)]
        found[name] = bytes_of(tmp_path / name)
    assert found["here"] == found["processes"]
    assert len(found["here"]) == 5


def test_what_is_done_is_not_done_again(tmp_path, two):
    shards, log = write_shards(tmp_path / "in", 4), tmp_path / "log"
    work = Upper(str(tmp_path / "out"), str(log))
    list(ThisProcess().map(work, shards[:3]))
    list(two.map(work, shards))
    assert sorted(line.split()[0] for line in lines_of(log)) == ["0.txt", "1.txt", "2.txt", "3.txt"]


def test_the_name_of_a_file_follows_from_content_and_recipe_alone(tmp_path):
    first, second = write_shards(tmp_path / "a", 2)
    (moved,) = write_shards(tmp_path / "b", 1)
    work, elsewhere = Upper("/out", "log"), Upper("/other", "another log")
    names = [Path(one.location_of(shard)).name for one in (work, elsewhere) for shard in (first, moved)]
    assert len(set(names)) == 1
    assert Path(work.location_of(second)).name not in names
    changed = type("Lower", (Upper,), {"recipe": property(lambda self: {"what": "small letters"})})
    assert Path(changed("/out", "log").location_of(first)).name not in names


def test_a_killed_workers_part_is_done_again_whole(tmp_path, two):
    shards, log = write_shards(tmp_path / "in", 5), tmp_path / "log"
    work = Upper(str(tmp_path / "out"), str(log), kill="2.txt")
    paths = list(two.map(work, shards))
    assert [Path(path).read_text() for path in paths] == [f"SHARD {number}" for number in range(5)]
    times = [line.split()[0] for line in lines_of(log)].count("2.txt")
    assert times == 2
    assert not [path for path in bytes_of(tmp_path / "out") if not path.endswith(".part")][5:]


class BrokenAtOnce:
    """A pool that is found broken when a part is handed over, as where a worker dies between two parts."""

    def submit(self, work, part):
        raise BrokenProcessPool

    def shutdown(self, cancel_futures):
        pass


def test_no_part_is_lost_where_a_worker_dies_between_two_parts(monkeypatch):
    made = Processes._pool
    pools = [BrokenAtOnce(), BrokenAtOnce()]
    monkeypatch.setattr(Processes, "_pool", lambda self, needs: pools.pop() if pools else made(self, needs))
    assert list(Processes(1).map(abs, range(6))) == list(range(6))
    assert pools == []


def test_deaths_at_other_parts_are_counted_apart(tmp_path, two):
    shards, log = write_shards(tmp_path / "in", 12), tmp_path / "log"
    work = Upper(str(tmp_path / "out"), str(log), kill="0.txt,5.txt,10.txt")
    assert len(list(two.map(work, shards))) == 12
    assert len(lines_of(log)) >= 12 + 3


def test_a_part_that_kills_its_worker_each_time_is_given_up(tmp_path, two):
    shards = write_shards(tmp_path / "in", 3)
    work = Upper(str(tmp_path / "out"), str(tmp_path / "log"), kill="1.txt", is_fatal=True)
    results = two.map(work, shards)
    next(results)
    with refused("want of memory. Give fewer --workers; what is done is kept, so run the command again.") as caught:
        list(results)
    assert "workers died 3 times at the same part" in str(caught.value)
    # Run again, with nothing that kills it, it makes what is missing.
    assert len(list(two.map(replace(work, is_fatal=False), shards))) == 3


@pytest.mark.parametrize("engine", [ThisProcess(), Processes(2)])
def test_what_work_raises_comes_after_the_parts_before_it(tmp_path, engine):
    work = Upper(str(tmp_path / "out"), str(tmp_path / "log"), fail="1.txt")
    results = engine.map(work, write_shards(tmp_path / "in", 3))
    assert Path(next(results)).read_text() == "SHARD 0"
    with pytest.raises(InputError, match=r"1\.txt is bad"):
        next(results)
    failed = [path for path in (tmp_path / "out").iterdir() if path.read_text() != path.read_text().upper()]
    assert failed == []


def test_few_parts_are_begun_before_they_are_asked_for(two):
    read = []
    results = two.map(abs, (read.append(number) or number for number in range(100)))
    assert next(results) == 0
    assert len(read) == AHEAD * 2
    assert list(itertools.islice(results, 3)) == [1, 2, 3]
    assert len(read) == AHEAD * 2 + 3
    results.close()


def test_a_task_has_the_threads_it_needs_and_leaves_those_of_others(tmp_path, two):
    before = torch.get_num_threads()
    shards = write_shards(tmp_path / "in", 2)
    for number, engine in enumerate((ThisProcess(), two)):
        log = tmp_path / f"log-{number}"
        list(engine.map(Upper(str(tmp_path / str(number)), str(log)), shards, Needs(cpus=3)))
        assert [line.split()[2] for line in lines_of(log)] == ["3", "3"]
    assert torch.get_num_threads() == before


def test_workers_end_with_a_parent_that_was_killed():
    script = (
        "from allrec.parallel import Processes\nfrom cluster.shard_work import pid_after\n"
        "if __name__ == '__main__':\n"
        "    results = Processes(1).map(pid_after, [0, 600])\n    print(next(results), flush=True)\n    next(results)\n"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}
    ) as parent:
        worker = int(parent.stdout.readline())
        assert is_running(worker)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)


def test_two_writers_of_one_file_with_one_process_number_do_not_meet(tmp_path):
    # As on two nodes, of which one was thought dead.
    with atomic_path(tmp_path / "file") as first:
        first.write_text("first")
        with atomic_path(tmp_path / "file") as second:
            second.write_text("second")
        assert first.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_number_of_workers_is_one_at_least():
    with pytest.raises(InputError, match="got 0 workers, expected at least 1"):
        Processes(0)


def test_a_worker_is_used_for_many_parts(two):
    assert len(set(two.map(pid_after, [0.0] * 12))) <= 2


def test_workers_have_the_environment_of_the_program_as_it_is_now(two, monkeypatch):
    list(two.map(abs, [1, 2]))
    monkeypatch.setenv("ALLREC_OF_LATE", "now")
    assert list(Processes(1).map(os.getenv, ["ALLREC_OF_LATE"])) == ["now"]
