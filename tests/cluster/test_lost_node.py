"""A whole node lost in the middle of ``prepare``, of ``recommend-all`` and of a training: the same files."""

import os
import sys
import threading
import time
from dataclasses import replace

import pytest

from allrec.data import PrepareConfig, SimulationConfig, prepare, simulate
from allrec.parallel import Needs
from allrec.recommender import AllRec
from cluster.shard_work import files_of
from cluster.training_work import Train, TrainedWhereNodesAreLost
from worlds import make_world

ray = pytest.importorskip("ray")
# In a process of its own: the node that is lost is one of this process's cluster.
pytestmark = [pytest.mark.ray, pytest.mark.soak]


class LosesNode:
    """An engine whose cluster loses a node by SIGKILL, and every worker on it, after the first part that is done."""

    def __init__(self, engine, cluster):
        self.engine, self.cluster, self.has_lost = engine, cluster, False

    def map(self, work, parts, needs=Needs()):
        for done in self.engine.map(work, parts, needs):
            if not self.has_lost:
                self.cluster.remove_node(next(iter(self.cluster.worker_nodes)), allow_graceful=False)
                self.has_lost = True
            yield done

    def nodes_in_the_end(self):
        """How many nodes are alive once Ray has noticed, which takes it a while."""
        end = time.monotonic() + 120
        while (alive := sum(node["Alive"] for node in ray.nodes())) > 2 and time.monotonic() < end:
            time.sleep(0.2)
        return alive


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**node)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def engine(cluster):
    from allrec.cluster.ray import RayEngine

    return LosesNode(RayEngine(cluster.address, workers=3), cluster)


def test_a_data_set_is_prepared_all_the_same(tmp_path, engine):
    simulate(tmp_path / "source", SimulationConfig(num_users=80, num_items=60, mean_interactions=6))
    prepare(tmp_path / "source", tmp_path / "whole", config=PrepareConfig(name="world"))
    prepare(tmp_path / "source", tmp_path / "parts", config=PrepareConfig(name="world"), partitions=9, engine=engine)
    assert engine.has_lost
    assert engine.nodes_in_the_end() == 2
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    assert len(files_of(tmp_path / "parts")) > 2


def test_every_user_is_recommended_to_all_the_same(tmp_path, engine):
    dataset, _, recipe = make_world(tmp_path, ("llm.enabled=false",))
    system = AllRec.train(dataset, run=tmp_path / "run", recipe=recipe, cache=tmp_path / "cache", is_evaluated=False)
    system.recommend_all(tmp_path / "whole", k=3, users_a_part=8)
    system.recommend_all(tmp_path / "out", k=3, users_a_part=8, engine=engine)
    assert engine.has_lost
    assert engine.nodes_in_the_end() == 2
    assert files_of(tmp_path / "out" / "parts") == files_of(tmp_path / "whole" / "parts")
    assert len(files_of(tmp_path / "whole" / "parts")) == 10


# Ray warns of its own parts when Ray Train is imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_training_goes_on_where_nodes_are_left(tmp_path, cluster):
    from allrec.cluster.training import RayWorkers

    # Two workers and a CPU to spare, before and after.
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    simulate(tmp_path / "source", SimulationConfig(num_users=80, num_items=60, mean_interactions=6))
    prepare(tmp_path / "source", tmp_path / "dataset", config=PrepareConfig(name="world"))
    for name in ("whole", "out", "places"):
        (tmp_path / name).mkdir()
    # Eight steps or more an epoch, and a checkpoint after every third.
    sets = ("backbone.tokens_per_batch=40",)
    group, work = RayWorkers(cluster.address, 2), Train("backbone", tmp_path / "dataset", tmp_path / "out", sets)
    group.run(replace(work, out=tmp_path / "whole"))
    losing = threading.Thread(target=lose_node, args=(cluster, tmp_path / "places"))
    losing.start()
    group.run(TrainedWhereNodesAreLost(work, tmp_path / "places", step=5))
    losing.join()
    assert sum(node["Alive"] for node in ray.nodes()) == 3
    assert (tmp_path / "places" / "begun-again").exists()
    for file in ("losses.txt", "model.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def lose_node(cluster, places):
    """Kills the node of a worker that is in the middle of an epoch, and every process on it."""
    end = time.monotonic() + 300
    while not (places / "waits").exists() and time.monotonic() < end:
        time.sleep(0.1)
    used = {path.read_text() for path in places.glob("rank*")}
    # The head is none of these.
    cluster.remove_node(next(node for node in cluster.worker_nodes if node.node_id in used), allow_graceful=False)
