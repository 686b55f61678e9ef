"""Traps that would wait for ever are said at once."""

import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.remedies import refused

from allrec.cli.engines import open_engine
from allrec.cluster.checks import check_needs, check_room_for_data, check_shared_memory, check_workers
from allrec.cluster.ray import connect
from allrec.errors import InputError
from allrec.parallel import Needs, Processes

PROJECT = Path(__file__).parents[2]
ONES = [{"CPU": 1.0, "memory": 2.0**30}] * 3
LARGE = {"CPU": 4.0, "GPU": 1.0, "memory": 2.0**34}


def test_a_task_fits_one_node_and_not_their_sum():
    check_needs(Needs(cpus=1), ONES)
    check_needs(Needs(cpus=2), [*ONES, LARGE])
    with refused(
        "a task needs {}, and no node has as much at once: {}. Ask for less, or start larger nodes."
    ) as caught:
        check_needs(Needs(cpus=2), ONES)
    assert "needs 2 CPUs, and no node has as much at once: of 3 nodes the largest has 1" in str(caught.value)
    check_needs(Needs(cpus=1), ONES)
    with pytest.raises(InputError, match="2048 MiB"):
        check_needs(Needs(memory=2 << 30), ONES)
    with pytest.raises(InputError, match=r"0\.5 GPUs"):
        check_needs(Needs(gpus=0.5), ONES)
    check_needs(Needs(gpus=0.5), [*ONES, LARGE])
    with pytest.raises(InputError, match="there is none"):
        check_needs(Needs(), [])


def test_workers_that_start_together_have_places_all_at_once():
    check_workers(2, Needs(cpus=2), [LARGE, *ONES])
    with refused(
        "and the nodes have places for {}: {}. Give fewer --workers, ask for less, or start more nodes."
    ) as caught:
        check_workers(3, Needs(cpus=2), [LARGE, *ONES])
    assert "3 workers need 2 CPUs each, and the nodes have places for 2" in str(caught.value)
    check_workers(3, Needs(cpus=1), [LARGE, *ONES])
    check_workers(3, Needs(cpus=2), [LARGE, LARGE, *ONES])
    with pytest.raises(InputError, match="places for 1"):
        check_workers(2, Needs(cpus=1, gpus=1.0), [LARGE, *ONES])


def test_training_leaves_a_cpu_for_its_data():
    check_room_for_data(2, Needs(), ONES)
    with refused("so that both would wait for ever. Give fewer --workers, or leave a CPU.") as caught:
        check_room_for_data(3, Needs(), ONES)
    assert "3 workers take 3 of the cluster's 3 CPUs" in str(caught.value)
    check_room_for_data(3, Needs(), [*ONES, {"CPU": 1.0}])


def test_a_small_shared_memory_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=64 << 20))
    with refused("run --shm-size=8g; on Kubernetes an emptyDir of medium Memory at /dev/shm.") as caught:
        check_shared_memory(tmp_path)
    assert "has 64 MiB, expected at least 512 MiB" in str(caught.value)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=8 << 30))
    check_shared_memory(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=64 << 20))
    check_shared_memory(tmp_path, least=64 << 20)
    check_shared_memory(tmp_path / "none")


def test_ray_is_installed_with_its_extra(monkeypatch):
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "ray", None)
        with refused("Ray is not installed. Install it: pip install 'allrec[cluster]'"):
            connect("local")
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("ray[") for requirement in extras["cluster"])


def test_where_no_cluster_answers_work_is_done_here(monkeypatch):
    ray = pytest.importorskip("ray")

    def no_answer(*_, **__):
        raise ConnectionError("nobody is there")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", no_answer)
    with refused("Begin one: ray start --head; or run here: --engine processes, --engine ray://local"):
        open_engine("ray://127.0.0.1:1", 2)
    engine = open_engine("processes", 2)
    assert isinstance(engine, Processes)
    assert list(engine.map(abs, [-1, 2])) == [1, 2]
