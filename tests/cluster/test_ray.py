"""The engine of Ray over three nodes of this machine: the same files, kills, bounds, and what it refuses at once."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.remedies import refused

from allrec.cluster.training import RayWorkers
from allrec.errors import InputError
from allrec.parallel import AHEAD, Needs, Processes, ThisProcess
from allrec.recommender import AllRec
from allrec.training.distributed import Workers
from cluster.shard_work import Accelerator, Upper, lines_of, pid_after, write_shards
from cluster.training_work import Die, Train
from worlds import make_world

ray = pytest.importorskip("ray")
# By themselves (make test): Ray ends the process of a program whose cluster died, tests beside it as well.
pytestmark = pytest.mark.ray
PATIENCE = {
    "health_check_timeout_ms": 60_000,
    "health_check_failure_threshold": 20,
    "gcs_rpc_server_reconnect_timeout_s": 900,
}
"""For machines with much else to do: a node that does not answer for seconds is taken for dead otherwise."""


@pytest.fixture(scope="module")
def engine():
    from ray.cluster_utils import Cluster

    from allrec.cluster.ray import RayEngine

    patch = pytest.MonkeyPatch()
    # Nodes begin workers with the environment that they themselves began with.
    patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", str(PATIENCE["gcs_rpc_server_reconnect_timeout_s"]))
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    head = {**node, "include_dashboard": False, "_system_config": PATIENCE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for gpus in (0, 1):
        cluster.add_node(**node, num_gpus=gpus)
    try:
        yield RayEngine(cluster.address, workers=3)
    finally:
        patch.undo()
        ray.shutdown()
        cluster.shutdown()


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_files_are_those_of_the_other_engines(tmp_path, engine):
    shards = write_shards(tmp_path / "in", 6)
    for name, one in (("ray", engine), ("here", ThisProcess()), ("processes", Processes(2))):
        list(one.map(Upper(str(tmp_path / name), str(tmp_path / f"{name}.log")), shards))
    assert bytes_of(tmp_path / "ray") == bytes_of(tmp_path / "here") == bytes_of(tmp_path / "processes")
    assert len(bytes_of(tmp_path / "ray")) == 6


def test_a_killed_workers_part_is_done_again_and_what_is_done_is_not(tmp_path, engine):
    shards, log = write_shards(tmp_path / "in", 4), tmp_path / "log"
    list(ThisProcess().map(Upper(str(tmp_path / "out"), str(log)), shards[:1]))
    paths = list(engine.map(Upper(str(tmp_path / "out"), str(log), kill="2.txt"), shards))
    assert [Path(path).read_text() for path in paths] == [f"SHARD {number}" for number in range(4)]
    assert sorted(line.split()[0] for line in lines_of(log)) == ["0.txt", "1.txt", "2.txt", "2.txt", "3.txt"]


def test_a_part_that_kills_its_worker_each_time_is_given_up(tmp_path, engine):
    work, shards = Upper(str(tmp_path / "out"), str(tmp_path / "log"), "1.txt", True), write_shards(tmp_path / "in", 2)
    results = engine.map(work, shards)
    next(results)
    with refused(
        "same part: {} Give fewer --workers or larger nodes; what is done is kept, so run the command again."
    ) as caught:
        next(results)
    assert "workers died 3 times" in str(caught.value)
    # Run again, with nothing that kills it, it makes what is missing.
    assert len(list(engine.map(replace(work, is_fatal=False), shards))) == 2


def test_what_work_raises_is_raised_as_it_was(tmp_path, engine):
    work = Upper(str(tmp_path / "out"), str(tmp_path / "log"), fail="0.txt")
    with pytest.raises(InputError, match=r"^0\.txt is bad$"):
        list(engine.map(work, write_shards(tmp_path / "in", 1)))


def test_recommendations_for_every_user_are_the_same_bytes(tmp_path, engine):
    dataset, _, recipe = make_world(tmp_path, ("llm.enabled=false",))
    system = AllRec.train(dataset, run=tmp_path / "run", recipe=recipe, cache=tmp_path / "cache", is_evaluated=False)
    for name, one in (("here", None), ("ray", engine)):
        system.recommend_all(tmp_path / name, k=3, users_a_part=20, engine=one)
    assert bytes_of(tmp_path / "here" / "parts") == bytes_of(tmp_path / "ray" / "parts")
    assert len(bytes_of(tmp_path / "ray" / "parts")) == 4


# A minute on two busy cores. Ray warns of its own parts when Ray Train is imported.
@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_workers_of_ray_train_the_same_function(tmp_path, engine):
    dataset = make_world(tmp_path)[0]
    for name, group in (("ray", RayWorkers(workers=2)), ("processes", Workers(2))):
        (tmp_path / name).mkdir()
        group.run(Train("backbone", dataset, tmp_path / name))
    found = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("ray", "processes")]
    assert found[0] == found[1]
    with pytest.raises(InputError, match="no such column"):
        RayWorkers(workers=2).run(Die(InputError("no such column")))


def test_training_that_would_wait_for_ever_is_refused_at_once(engine):
    with pytest.raises(InputError, match="4 workers need 1 CPUs each, and the nodes have places for 3"):
        RayWorkers(workers=4)
    with pytest.raises(InputError, match="2 workers need 2 CPUs each, and the nodes have places for 0"):
        RayWorkers(workers=2, needs=Needs(cpus=2))
    with pytest.raises(InputError, match="none is left for the tasks that read their data"):
        RayWorkers(workers=3)


def test_few_parts_are_begun_before_they_are_asked_for(engine):
    read = []
    results = engine.map(abs, (read.append(number) or number for number in range(100)))
    assert next(results) == 0
    assert 3 <= len(read) <= AHEAD * 3
    results.close()


def test_no_more_tasks_than_workers_are_at_work(tmp_path, engine):
    from allrec.cluster.ray import RayEngine

    seen = list(
        RayEngine(ray.get_runtime_context().gcs_address, workers=1).map(
            Accelerator(str(tmp_path / "at work")), range(4)
        )
    )
    assert [is_alone for _, is_alone in seen] == [True] * 4


def test_a_worker_is_used_for_many_parts(engine):
    # One process a node, for which a model is loaded once; another where Ray starts one ahead.
    assert len(set(engine.map(pid_after, [0.0] * 24))) <= 6


def test_tasks_with_an_accelerator_run_where_it_is_one_after_the_other(tmp_path, engine):
    seen = list(engine.map(Accelerator(str(tmp_path / "at work")), range(4), Needs(gpus=1)))
    assert seen == [("0", True)] * 4
    with pytest.raises(InputError, match="a task needs 1 CPUs and 2 GPUs, and no node has as much at once"):
        next(engine.map(abs, [1], Needs(gpus=2)))


def test_a_task_of_two_cpus_on_nodes_of_one_is_refused_where_ray_would_wait(engine):
    with pytest.raises(InputError, match="a task needs 2 CPUs, and no node has as much at once: of 3 nodes"):
        next(engine.map(abs, [1], Needs(cpus=2)))


def test_threads_are_those_asked_for_whatever_ray_sets(tmp_path, engine):
    log = tmp_path / "log"
    list(engine.map(Upper(str(tmp_path / "out"), str(log)), write_shards(tmp_path / "in", 3), Needs(cpus=1)))
    assert [line.split()[2] for line in lines_of(log)] == ["1"] * 3
