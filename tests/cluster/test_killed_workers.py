"""A worker killed by ``kill -9`` in each phase: the same result, of what was done and what is done again."""

import os
import sys

import pytest
from safetensors.torch import load_file
from tests.remedies import refused

from allrec.data import PrepareConfig, SimulationConfig, prepare, simulate
from allrec.parallel import Processes
from allrec.recommender import AllRec
from allrec.training.distributed import Workers
from cluster.shard_work import KillOnce, files_of
from cluster.training_work import Train
from worlds import make_world


@pytest.fixture(autouse=True)
def _of_workers(monkeypatch):
    # Ray begins workers with the environment that it began with itself.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


def ray_engine():
    pytest.importorskip("ray")
    from allrec.cluster.ray import RayEngine

    return RayEngine("local", 2)


ENGINES = [Processes(2), pytest.param(ray_engine, marks=pytest.mark.soak)]


@pytest.fixture
def engine(request, _of_workers):
    if isinstance(request.param, Processes):
        yield request.param
        return
    import ray

    yield request.param()
    ray.shutdown()


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_a_data_set_is_prepared_all_the_same(tmp_path, engine):
    simulate(tmp_path / "source", SimulationConfig(num_users=80, num_items=60, mean_interactions=6))
    killing = KillOnce(engine, tmp_path / "killed")
    prepare(tmp_path / "source", tmp_path / "whole", config=PrepareConfig(name="world"))
    given = {"config": PrepareConfig(name="world"), "partitions": 3, "engine": killing}
    prepare(tmp_path / "source", tmp_path / "parts", **given)
    assert len(list((tmp_path / "killed").iterdir())) >= 1
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    assert len(files_of(tmp_path / "parts")) > 2


@pytest.mark.parametrize("engine", ENGINES, indirect=True)
def test_every_user_is_recommended_to_all_the_same(tmp_path, engine):
    dataset, _, recipe = make_world(tmp_path, ("llm.enabled=false",))
    system = AllRec.train(dataset, run=tmp_path / "run", recipe=recipe, cache=tmp_path / "cache", is_evaluated=False)
    system.recommend_all(tmp_path / "whole", k=3, users_a_part=20)
    system.recommend_all(tmp_path / "out", k=3, users_a_part=20, engine=KillOnce(engine, tmp_path / "killed"))
    assert len(list((tmp_path / "killed").iterdir())) == 1
    assert files_of(tmp_path / "out" / "parts") == files_of(tmp_path / "whole" / "parts")
    assert len(files_of(tmp_path / "whole" / "parts")) == 4


def prepared(folder):
    simulate(folder / "source", SimulationConfig(num_users=80, num_items=60, mean_interactions=6))
    prepare(folder / "source", folder / "dataset", config=PrepareConfig(name="world"))
    return folder / "dataset"


def train_killed(folder, dataset, group, refusal):
    """Trains undisturbed, and killed in the middle of an epoch and gone on with; what each has learned."""
    for name in ("whole", "out"):
        (folder / name).mkdir()
    # Eight steps or more an epoch, and a checkpoint after every third.
    sets = ("backbone.tokens_per_batch=40",)
    group.run(Train("backbone", dataset, folder / "whole", sets))
    with refusal:
        group.run(Train("backbone", dataset, folder / "out", sets, die_at=5))
    assert (folder / "out" / "checkpoint.safetensors").exists()
    assert not (folder / "out" / "model.safetensors").exists()
    group.run(Train("backbone", dataset, folder / "out", sets))
    losses = [(folder / name / "losses.txt").read_text() for name in ("whole", "out")]
    assert losses[0] == losses[1]
    whole, resumed = (load_file(folder / name / "model.safetensors") for name in ("whole", "out"))
    assert all((resumed[name] == value).all() for name, value in whole.items())


def test_training_goes_on_to_the_same_bytes(tmp_path):
    refusal = refused("for want of memory. Give fewer --workers, and go on with --resume.")
    train_killed(tmp_path, prepared(tmp_path), Workers(2), refusal)


# Ray warns of its own parts when Ray Train is imported.
@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_training_under_ray_train_goes_on_to_the_same_bytes(tmp_path):
    ray = pytest.importorskip("ray")
    from allrec.cluster.training import RayWorkers

    try:
        refusal = refused("for want of memory. Give fewer --workers or larger nodes, and go on with --resume.")
        train_killed(tmp_path, prepared(tmp_path), RayWorkers(workers=2), refusal)
    finally:
        ray.shutdown()
