"""``allrec serve`` as a process: it becomes ready, answers what was begun when it is stopped, and keeps its store."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from time import monotonic, sleep

import httpx

USERS = 6


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(run, folder, port, name, database=None):
    """A process that is ready; its log goes to a file, as a pipe that nobody reads would fill."""
    command = [sys.executable, "-c", "from allrec.cli.commands import main; main()", "serve", str(run)]
    options = ["--port", str(port), "--no-llm", "--database", database or f"sqlite:///{folder}/store.db"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with (folder / name).open("w") as log:
        process = subprocess.Popen([*command, *options], stderr=log, env=environment)
        try:
            end = monotonic() + 120
            while not is_ready(port):
                assert process.poll() is None, (folder / name).read_text()
                assert monotonic() < end
                sleep(0.1)
            yield process
        finally:
            process.kill()
            process.wait(10)


def is_ready(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_it_answers_what_was_begun_when_it_is_stopped_and_a_killed_one_loses_no_event(run, tmp_path, system):
    port, users = free_port(), system.model.catalogue.user_ids[:USERS]
    address = f"http://127.0.0.1:{port}/v1"
    event = {"event_id": "1", "user_id": "u", "item_id": "i", "kind": "view", "timestamp": 1.0}
    with serving(run, tmp_path, port, "first.log") as process:
        assert httpx.post(f"{address}/events", json={"events": [event]}).json() == {"received": 1, "new": 1}
        process.kill()
    with serving(run, tmp_path, port, "log") as process, ThreadPoolExecutor(USERS) as pool:
        assert httpx.post(f"{address}/events", json={"events": [event]}).json() == {"received": 1, "new": 0}

        statuses = []

        def ask_until_it_ends(user):
            with httpx.Client(base_url=address, timeout=30) as client, suppress(httpx.TransportError):
                while True:
                    statuses.append(client.post("/recommendations", json={"user_id": user}).status_code)

        asked = [pool.submit(ask_until_it_ends, user) for user in users]
        end = monotonic() + 60
        while len(statuses) <= 2 * USERS and monotonic() < end:
            sleep(0.05)
        process.send_signal(signal.SIGTERM)
        for one in asked:
            one.result(60)
        assert process.wait(40) in (0, -signal.SIGTERM)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    begun = [line["status"] for line in lines if line.get("route") == "/v1/recommendations"]
    assert len(begun) > USERS
    assert begun == statuses == [200] * len(begun)
    assert not [line for line in lines if line["level"] == "error"]
