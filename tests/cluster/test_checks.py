"""Traps that would wait for ever are said at once."""

from types import SimpleNamespace

import pytest

from allrec.cluster.checks import check_needs, check_room_for_data, check_shared_memory, check_workers
from allrec.errors import InputError
from allrec.parallel import Needs

ONES = [{"CPU": 1.0, "memory": 2.0**30}] * 3
LARGE = {"CPU": 4.0, "GPU": 1.0, "memory": 2.0**34}


def test_a_task_fits_one_node_and_not_their_sum():
    check_needs(Needs(cpus=1), ONES)
    check_needs(Needs(cpus=2), [*ONES, LARGE])
    with pytest.raises(InputError, match="needs 2 CPUs, and no node has as much at once: of 3 nodes the largest has 1"):
        check_needs(Needs(cpus=2), ONES)
    with pytest.raises(InputError, match="2048 MiB"):
        check_needs(Needs(memory=2 << 30), ONES)
    with pytest.raises(InputError, match=r"0\.5 GPUs"):
        check_needs(Needs(gpus=0.5), ONES)
    check_needs(Needs(gpus=0.5), [*ONES, LARGE])
    with pytest.raises(InputError, match="there is none"):
        check_needs(Needs(), [])


def test_workers_that_start_together_have_places_all_at_once():
    check_workers(2, Needs(cpus=2), [LARGE, *ONES])
    with pytest.raises(InputError, match="3 workers need 2 CPUs each, and the nodes have places for 2"):
        check_workers(3, Needs(cpus=2), [LARGE, *ONES])
    with pytest.raises(InputError, match="places for 1"):
        check_workers(2, Needs(cpus=1, gpus=1.0), [LARGE, *ONES])


def test_training_leaves_a_cpu_for_its_data():
    check_room_for_data(2, Needs(), ONES)
    with pytest.raises(InputError, match="3 workers take 3 of the cluster's 3 CPUs"):
        check_room_for_data(3, Needs(), ONES)


def test_a_small_shared_memory_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=64 << 20))
    with pytest.raises(InputError, match="has 64 MiB, expected at least 512 MiB"):
        check_shared_memory(tmp_path)
    check_shared_memory(tmp_path, least=64 << 20)
    check_shared_memory(tmp_path / "none")
