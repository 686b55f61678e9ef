"""A fresh store of either database."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import postgres
import psycopg
import pytest

from allrec.recommender import AllRec
from allrec.serving.snapshots import Served, Snapshot
from allrec.serving.store import Store
from worlds import FUSED, make_world


@contextmanager
def served(*options):
    if postgres.binaries() is None:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    # Not pytest's own folder, which the server's user may not enter.
    folder = Path(tempfile.mkdtemp(prefix="allrec-postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, postgres.USER)
    try:
        with postgres.running(folder / "data", *options) as running:
            yield running
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server():
    """One PostgreSQL server a test process."""
    with served("fsync=off") as running:
        yield running


@pytest.fixture
def durable_server():
    """A PostgreSQL server with its own settings, as users have it."""
    with served() as running:
        yield running


@pytest.fixture(scope="session")
def database(server):
    return server.create("store")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """The address of a database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    address = request.getfixturevalue("database")
    with psycopg.connect(address.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return address


@pytest.fixture
def store(url):
    opened = Store.open(url)
    yield opened
    opened.close()


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
