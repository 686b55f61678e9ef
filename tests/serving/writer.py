"""Writes events to a store, batch by batch, and says after each how many are acknowledged. Made to be killed."""

import sys

from allrec.serving.store import Event, Store


def events(begin, end):
    return [
        Event(f"e{number}", f"u{number % 7}", f"i{number % 11}", "view", float(number)) for number in range(begin, end)
    ]


def main(url, begin, end, batch):
    with Store.open(url) as store:
        for start in range(begin, end, batch):
            stop = min(start + batch, end)
            store.add_events("t", events(start, stop))
            sys.stdout.write(f"{stop}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
