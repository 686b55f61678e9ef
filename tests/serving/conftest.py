"""Tiny runs to serve: one with a fusion, trained once a session."""

import pytest

from allrec.recommender import AllRec
from allrec.serving.snapshots import Served, Snapshot
from worlds import FUSED, make_world


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A run with a fusion and a language model."""
    folder = tmp_path_factory.mktemp("served")
    dataset, llm, recipe = make_world(folder, FUSED)
    AllRec.train(dataset, run=folder / "run", recipe=recipe, llm=str(llm), cache=folder / "cache", is_evaluated=False)
    return folder / "run"


@pytest.fixture(scope="session")
def system(run):
    return AllRec.from_pretrained(run)


@pytest.fixture(scope="session")
def snapshot(run):
    return Snapshot.first(Served.load(str(run), 1))
