"""Two workers on PostgreSQL under load for long: no request fails while a model is switched and a worker is killed.

``ALLREC_SOAK_SECONDS`` sets how long, an hour unless it is given; ``ALLREC_SOAK_RATE`` how many requests a second are
offered, as many as are answered unless it is given.
"""

import json
import os
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from time import monotonic, sleep, time

import httpx
import numpy as np
import psutil
import pytest
from tests.serving.test_process import free_port, serving

SECONDS = float(os.environ.get("ALLREC_SOAK_SECONDS", "3600"))
RATE = float(os.environ.get("ALLREC_SOAK_RATE", "inf"))
THREADS = 4
WRITES = 10
"""One request in so many is a write."""
MOST_GROWTH = 1.05
"""Of a worker's memory, from the tenth of the time after the first sixth (ten minutes of an hour) to the last."""
SLOWEST = 30.0
"""Seconds after which a request counts as failed."""


@dataclass
class Load:
    """What was sent and what came back.

    Attributes:
        ports: of the workers; a request that one of them breaks off goes to the next, as a balancer would send it.
        failed: answers other than 200, and requests that no worker took.
        seconds: of each request.
        answered: how many requests each worker's port answered.
        sent: ids of events that were acknowledged.
        versions: model versions that answered, with the latest time that each was seen.
    """

    ports: list[int]
    users: list[str]
    item_ids: list[str]
    failed: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    answered: Counter = field(default_factory=Counter)
    sent: set[str] = field(default_factory=set)
    versions: dict[int, float] = field(default_factory=dict)
    num_retried: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def run(self, thread):
        """Sends one request after the other until it is over, and its share of ``RATE`` at most."""
        number, rng, begin = 0, np.random.default_rng(thread), monotonic()
        with ExitStack() as stack:
            clients = [
                stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=SLOWEST))
                for port in self.ports
            ]
            while not self.is_over.wait(max(0.0, begin + number * THREADS / RATE - monotonic())):
                number += 1
                self.ask(clients, thread + number, f"{thread}-{number}", number % WRITES == 0, rng)

    def ask(self, clients, first, name, is_write, rng):
        """One request: an event of a user, or recommendations for one."""
        user, item = str(rng.choice(self.users)), str(rng.choice(self.item_ids))
        event = {"event_id": name, "user_id": user, "item_id": item, "kind": "view", "timestamp": time()}
        path, body = ("/events", {"events": [event]}) if is_write else ("/recommendations", {"user_id": user})
        begin = monotonic()
        for turn in range(2 * len(clients)):
            worker = (first + turn) % len(clients)
            try:
                answer = clients[worker].post(path, json=body)
                self.answered[self.ports[worker]] += 1
                break
            except httpx.TransportError:
                self.num_retried += 1
        else:
            self.failed.append(f"{path}: no worker")
            return
        self.seconds.append(monotonic() - begin)
        if answer.status_code != 200:
            self.failed.append(f"{path}: {answer.status_code} {answer.text[:200]}")
        elif is_write:
            self.sent.add(name)
        else:
            self.versions[answer.json()["model_version"]] = monotonic()


def wait_for(is_it, seconds=120):
    end = monotonic() + seconds
    while not is_it():
        assert monotonic() < end
        sleep(0.2)


def publish(port, run):
    httpx.post(f"http://127.0.0.1:{port}/v1/models", json={"run": run}, timeout=60).raise_for_status()


def loaded(port):
    return httpx.get(f"http://127.0.0.1:{port}/v1/models").json()["loaded"]


@pytest.mark.soak
def test_nothing_fails_while_the_model_is_switched_and_a_worker_is_killed(run, system, server, tmp_path, capsys):
    if not (run.parent / "switched").exists():
        system.save_pretrained(run.parent / "switched")
    catalogue, database = system.model.catalogue, server.create("soak")
    ports = [free_port(), free_port()]
    load, memory = Load(ports, catalogue.user_ids, catalogue.item_ids), []
    threads = [threading.Thread(target=load.run, args=(number,)) for number in range(THREADS)]
    with ExitStack() as stack:
        first = stack.enter_context(serving(run, tmp_path, ports[0], "first.log", database))
        with serving(run, tmp_path, ports[1], "second.log", database) as second:
            begin = monotonic()
            for thread in threads:
                thread.start()
            stack.callback(lambda: [thread.join() for thread in threads])
            stack.callback(load.is_over.set)
            watched = psutil.Process(first.pid)
            until(begin + SECONDS / 3, watched, memory)
            publish(ports[0], "switched")
            wait_for(lambda: {loaded(port) for port in ports} == {2})
            until(begin + SECONDS / 2, watched, memory)
            second.kill()
        sleep(min(5.0, SECONDS / 20))
        stack.enter_context(serving(run, tmp_path, ports[1], "third.log", database))
        until(begin + SECONDS, watched, memory)
        load.is_over.set()
        for thread in threads:
            thread.join()
        stored = {one["event_id"] for user in catalogue.user_ids for one in events_of(ports[1], user)}
    told = summary(load, memory)
    with capsys.disabled():
        print(f"\n{json.dumps(told)}")
    assert load.failed == []
    assert load.num_retried > 0
    assert set(load.answered) == set(ports)
    assert set(load.versions) == {1, 2}
    assert stored == load.sent
    assert told["growth"] <= MOST_GROWTH


def until(end, process, memory):
    """Waits, and notes a worker's memory as it goes."""
    while monotonic() < end:
        memory.append(process.memory_info().rss)
        sleep(min(1.0, SECONDS / 100))


def events_of(port, user):
    answer = httpx.get(f"http://127.0.0.1:{port}/v1/users/{user}", timeout=60)
    return answer.raise_for_status().json()["events"]


def summary(load, memory):
    """What the soak is reported by: requests, quantiles in milliseconds, and the growth of memory."""
    tenth, sixth = max(1, len(memory) // 10), len(memory) // 6
    warm, last = median(memory[sixth : sixth + tenth]), median(memory[-tenth:])
    quantiles = {str(q): round(1e3 * float(np.quantile(load.seconds, q)), 1) for q in (0.5, 0.99, 0.999)}
    counts = {"requests": len(load.seconds), "writes": len(load.sent), "failed": len(load.failed)}
    return {
        **counts,
        "answered": [load.answered[port] for port in load.ports],
        "retried": load.num_retried,
        "ms": quantiles,
        "mib": [round(warm / 2**20, 1), round(last / 2**20, 1)],
        "growth": round(last / warm, 4),
    }
