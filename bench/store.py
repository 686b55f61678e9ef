"""Bulk import of events into the store, and how long the reads take that a request makes.

SQLite in a temporary folder unless an address is given. Events go through ``Store.add_events`` in batches, as the
import route does; each batch is on disk before the next begins.

    python bench/store.py
    python bench/store.py --url postgresql://postgres@localhost/empty_database
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import numpy as np

from allrec.serving.store import Event, Store

NUM_USERS, NUM_ITEMS = 10_000, 6_000
ASKED, AIMED = 5_000, 20_000  # events a second
DAY = 86_400.0


def make_events(count: int, rng: np.random.Generator) -> list[Event]:
    """Views over a month by users and of items that are popular to different degrees."""
    users = rng.integers(NUM_USERS, size=count)
    items = np.minimum(rng.zipf(1.3, size=count), NUM_ITEMS)
    times = np.sort(rng.uniform(0, 30 * DAY, size=count))
    rows = zip(users.tolist(), items.tolist(), times.tolist(), strict=True)
    return [Event(f"event-{n}", f"user-{u}", f"item-{i}", "view", t) for n, (u, i, t) in enumerate(rows)]


def import_rate(store: Store, tenant: str, events: list[Event], batch: int) -> float:
    """Events a second."""
    begun = time.perf_counter()
    added = sum(store.add_events(tenant, events[start : start + batch]) for start in range(0, len(events), batch))
    seconds = time.perf_counter() - begun
    if added != len(events):
        raise RuntimeError(f"{added} of {len(events)} events were added")
    return len(events) / seconds


def milliseconds(read: Callable[[int], object], repeats: int) -> str:
    """Median and 99th percentile of a call."""
    times = []
    for number in range(repeats):
        begun = time.perf_counter()
        read(number)
        times.append((time.perf_counter() - begun) * 1000)
    return f"{statistics.median(times):8.2f} {np.quantile(times, 0.99):8.2f}"


def reads(store: Store, tenant: str) -> dict[str, tuple[Callable[[int], object], int]]:
    """Name to a call and how often it is made."""
    key = store.keys.create(tenant, scopes=["read"])
    event = Event("one", "user-1", "item-1", "view", 31 * DAY)
    return {
        "one event, acknowledged": (lambda n: store.add_events(tenant, [Event(f"one-{n}", *_rest(event))]), 200),
        "history of 50": (lambda n: store.history(tenant, f"user-{n}", limit=50), 500),
        "unavailable items, none changed": (lambda _: store.unavailable(tenant, now=0.0), 500),
        "check of a key": (lambda _: store.keys.check(key), 500),
        "popular of a week": (lambda _: store.popular(tenant, since=23 * DAY, limit=100), 10),
        "trending": (lambda _: store.trending(tenant, now=30 * DAY, limit=100), 10),
    }


def _rest(event: Event) -> tuple[str, str, str, float]:
    return event.user_id, event.item_id, event.kind, event.timestamp


def run(url: str, num_events: int, batch: int) -> None:
    """Prints a table of one database."""
    with Store.open(url) as store:
        tenant = f"bench-{time.time_ns()}"
        rate = import_rate(store, tenant, make_events(num_events, np.random.default_rng(0)), batch)
        print(f"{url.partition(':')[0]}, {num_events} events in batches of {batch}")
        print(f"  import: {rate:,.0f} events a second (asked {ASKED:,}, aimed at {AIMED:,})")
        print(f"  {'milliseconds':34}{'median':>8} {'p99':>8}")
        for name, (read, repeats) in reads(store, tenant).items():
            print(f"  {name:34}{milliseconds(read, repeats)}")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="the address of a database; SQLite in a temporary folder without")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=1_000)
    options = parser.parse_args(arguments)
    if options.url:
        run(options.url, options.events, options.batch)
        return
    with TemporaryDirectory() as folder:
        run(f"sqlite:///{folder}/store.db", options.events, options.batch)


if __name__ == "__main__":
    main(sys.argv[1:])
