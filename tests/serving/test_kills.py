"""``kill -9`` in the middle of writing: what was acknowledged is there, once.

The writer goes on from the last event that it was told is stored, as a client does: what was stored without an answer
is sent again. On PostgreSQL every second kill takes the server instead of the writer.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import writer

from allrec.serving.store import Store

NUM_PER_BATCH = 20


def write_until(url, begin, end, killed_at, kill):
    """Runs the writer until it has acknowledged ``killed_at`` events, kills, and returns how many it acknowledged."""
    command = [sys.executable, writer.__file__, url, *map(str, (begin, end, NUM_PER_BATCH))]
    source = Path(writer.__file__).parents[2] / "src"
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    acknowledged = begin
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged >= killed_at:
            kill(process)
            break
    # What it acknowledged before it noticed counts too.
    rest, errors = process.communicate()
    acknowledged = max([acknowledged, *map(int, rest.split())])
    assert acknowledged >= killed_at, errors
    return acknowledged


def check(url, acknowledged, total):
    """Nothing acknowledged is lost, nothing is there twice, nothing is there that was not sent."""
    with Store.open(url) as store:
        found = [event.event_id for _, event in store.events("t", limit=total + 1)]
    assert len(found) == len(set(found))
    assert {f"e{number}" for number in range(acknowledged)} <= set(found) <= {f"e{number}" for number in range(total)}
    return len(found)


def kill_often(url, total, num_kills, kills):
    rng = np.random.default_rng([7, total])
    acknowledged = 0
    for place, killed_at in enumerate(sorted(rng.choice(total * 9 // 10, num_kills, replace=False))):
        acknowledged = write_until(
            url, acknowledged, total, max(int(killed_at), acknowledged + 1), kills[place % len(kills)]
        )
        check(url, acknowledged, total)
    with Store.open(url) as store:
        store.add_events("t", writer.events(acknowledged, total))
    assert check(url, total, total) == total


def kill_writer(process):
    process.kill()


def kills_of(server):
    def kill_server(_):
        server.kill()
        server.start()

    return [kill_server, kill_writer]


def test_two_kills_lose_and_double_nothing_on_sqlite(tmp_path):
    kill_often(f"sqlite:///{tmp_path}/store.db", 600, 2, [kill_writer])


def test_two_kills_lose_and_double_nothing_on_postgresql(server):
    kill_often(server.create("killed"), 600, 2, kills_of(server))


@pytest.mark.soak
def test_ten_kills_in_20000_events_on_sqlite(tmp_path):
    kill_often(f"sqlite:///{tmp_path}/store.db", 20_000, 10, [kill_writer])


@pytest.mark.soak
def test_ten_kills_in_20000_events_on_postgresql(durable_server):
    kill_often(durable_server.create("killed"), 20_000, 10, kills_of(durable_server))
