"""Items that a user never touched: one at a time for training, or stored lists of them with a target among them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from allrec.data.protocols import NUM_NEGATIVES as NUM_NEGATIVES
from allrec.errors import notice

CHUNK_ROWS = 4_096
CHUNK_CELLS = 1 << 23
PAD = -1
# Above this many untouched items a wanted negative, drawing and drawing again is quick.
ROOMY = 4
# Touched items laid beside a row's negatives at most; negatives of the few users with more are looked up.
MAX_BESIDE = 512
MOST = 0.95
# A random number's lowest bits, which the double made of it does not have; the place in the row stands there.
PLACES = (1 << 11) - 1
UPPER = np.uint64((1 << 64) - 1 - PLACES)


def distinct_pairs(users: np.ndarray, items: np.ndarray, num_items: int) -> np.ndarray:
    """Who touched what, each pair once: user · num_items + item, int64, ascending."""
    keys = users.astype(np.int64) * num_items
    keys += items
    keys.sort()
    # np.unique hashes before it sorts, which takes longer than sorting at once and several times the memory.
    return keys[np.diff(keys, prepend=-1) > 0]


class Touched:
    """Answers for many (user, item) pairs at once whether the user ever touched the item.

    Args:
        users: int [interactions], of all splits.
        items: int [interactions].
        num_users: how many users there are.
        num_items: how many items the catalogue has.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, num_users: int, num_items: int) -> None:
        self.num_items = num_items
        self.keys = distinct_pairs(users, items, num_items)
        owners = self.keys // num_items
        self.items = (self.keys - owners * num_items).astype(np.int32)
        self.counts = np.bincount(owners, minlength=num_users)
        self.starts = np.cumsum(self.counts) - self.counts

    def beside(self, users: np.ndarray, width: int) -> np.ndarray:
        """The first ``width`` touched items of each user, int32 [users, width], then distinct numbers below 0."""
        columns = np.arange(width)
        items = np.take(self.items, self.starts[users, None] + columns, mode="clip")
        return np.where(columns < self.counts[users, None], items, (-1 - columns).astype(np.int32))

    def has(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether each user touched each item; arrays that broadcast against each other."""
        if users.size == 0 or len(self.keys) == 0:
            return np.zeros(np.broadcast_shapes(users.shape, items.shape), bool)
        wanted = users.astype(np.int64) * self.num_items + items
        # Users that are asked for together mostly stand together, and a short array is searched within the caches.
        bounds = np.array([users.min(), users.max() + 1], np.int64) * self.num_items
        keys = self.keys[slice(*np.searchsorted(self.keys, bounds))]
        places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found: np.ndarray = keys[places] == wanted if len(keys) else np.zeros(wanted.shape, bool)
        return found


class NegativeSampler:
    """Draws items that a user never touched, uniformly and without rejection.

    The r-th untouched item of a user is r plus the number of touched items before it. With a user's touched items
    sorted, t_0 < t_1 < ..., these are the j with t_j - j <= r: one binary search.

    Attributes:
        has_negative: bool [users], who has an untouched item.
    """

    def __init__(self, offsets: Int[np.ndarray, "offsets"], items: Int[np.ndarray, "interactions"], num_items: int):
        num_users = len(offsets) - 1
        users = np.repeat(np.arange(num_users), np.diff(offsets))
        touched = distinct_pairs(users, items, num_items)
        users = touched // num_items
        self.num_items = num_items
        self.num_touched = np.bincount(users, minlength=num_users)
        self.has_negative = self.num_touched < num_items
        self.first = np.cumsum(self.num_touched) - self.num_touched
        self.shifted = touched - (np.arange(len(touched)) - self.first[users])

    @classmethod
    def of(
        cls,
        user_ids: Sequence[str],
        offsets: Int[np.ndarray, "offsets"],
        items: Int[np.ndarray, "interactions"],
        num_items: int,
    ) -> "NegativeSampler":
        """A sampler over training interactions, which says by id which users have touched every item.

        Where all who have a next item to learn have touched everything, negatives come from the whole catalogue.

        Args:
            user_ids: for what is said.
            offsets: where each user's training items begin.
            items: these items.
            num_items: how many items the catalogue has.
        """
        sampler = cls(offsets, items, num_items)
        full = np.flatnonzero(~sampler.has_negative)
        if len(full) == 0:
            return sampler
        learners = np.diff(offsets) > 1
        if not (sampler.has_negative & learners).any():
            notice(f"every user has touched all {num_items} items: negatives are drawn from the whole catalogue.")
            return cls(np.zeros_like(offsets), items[:0], num_items)
        who = f"user {user_ids[full[0]]!r} has touched all {num_items} items and is"
        if len(full) > 1:
            who = f"{len(full):,} users, such as {user_ids[full[0]]!r}, have touched all {num_items} items and are"
        notice(f"{who} left out where negatives are drawn; all else is learned from them too.")
        return sampler

    def draw(self, users: Int[np.ndarray, "rows"], rng: np.random.Generator) -> Int[np.ndarray, "rows"]:
        """One item for each user of ``users``, drawn independently; each of them ``has_negative``."""
        ranks = rng.integers(self.num_items - self.num_touched[users])
        num_before = np.searchsorted(self.shifted, users * self.num_items + ranks, side="right") - self.first[users]
        return np.asarray(ranks + num_before)


def draw_candidates(
    users: np.ndarray, targets: np.ndarray, touched: Touched, num_negatives: int, rng: np.random.Generator
) -> np.ndarray:
    """The target among distinct uniform negatives, in random order.

    Args:
        users: int [rows].
        targets: int [rows].
        touched: what every user touched, in any split.
        num_negatives: negatives a row.
        rng: decides the negatives and the order.

    Returns:
        int32 [rows, 1 + num_negatives]; -1 at the end of a row where the catalogue has too few untouched items.
    """
    candidates = np.empty((len(users), 1 + num_negatives), np.int32)
    for start in range(0, len(users), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        negatives = draw_negatives(users[rows], touched, num_negatives, rng)
        candidates[rows] = shuffle(np.column_stack([targets[rows], negatives]), rng)
    return candidates


def draw_negatives(users: np.ndarray, touched: Touched, num_negatives: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct uniform items that each user never touched, int32 [rows, num_negatives], -1 at the end of short rows."""
    num_untouched = touched.num_items - touched.counts[users]
    is_roomy = num_untouched >= ROOMY * num_negatives
    if is_roomy.all():
        return draw_by_rejection(users, touched, num_negatives, rng)
    negatives = np.full((len(users), num_negatives), PAD, np.int32)
    roomy, tight = np.flatnonzero(is_roomy), np.flatnonzero(~is_roomy)
    negatives[roomy] = draw_by_rejection(users[roomy], touched, num_negatives, rng)
    step = max(1, CHUNK_CELLS // touched.num_items)
    for start in range(0, len(tight), step):
        rows = tight[start : start + step]
        negatives[rows] = draw_by_sorting(users[rows], touched, num_negatives, rng)
    return negatives


def draw_by_rejection(users: np.ndarray, touched: Touched, num_negatives: int, rng: np.random.Generator) -> np.ndarray:
    """Draws items, and again those that were touched or came twice: uniform without replacement, int32."""
    negatives = rng.integers(touched.num_items, size=(len(users), num_negatives), dtype=np.int32)
    pending = np.arange(len(users))
    while len(pending):
        is_refused = are_refused(users[pending], negatives[pending], touched)
        has_refused = is_refused.any(axis=1)
        pending, is_refused = pending[has_refused], is_refused[has_refused]
        drawn = rng.integers(touched.num_items, size=int(is_refused.sum()), dtype=np.int32)
        rows, columns = np.nonzero(is_refused)
        negatives[pending[rows], columns] = drawn
    return negatives


def are_refused(users: np.ndarray, negatives: np.ndarray, touched: Touched) -> np.ndarray:
    """Which negatives their user touched, or stand further left already; bool, the shape of ``negatives``.

    What a user touched is laid beside the negatives: a touched one then stands twice too, and sorting a row finds both
    in a fraction of the time of looking each one up.
    """
    counts = touched.counts[users]
    width = min(int(np.quantile(counts, MOST, method="higher")), MAX_BESIDE)
    is_refused = is_repeated(np.concatenate([touched.beside(users, width), negatives], axis=1))[:, width:]
    longer = np.flatnonzero(counts > width)
    is_refused[longer] |= touched.has(users[longer, None], negatives[longer])
    return is_refused


def is_repeated(values: np.ndarray) -> np.ndarray:
    """Where a row holds a value that stands in it already, further left; bool, the shape of ``values``."""
    repeats = np.zeros(values.shape, bool)
    ordered = np.sort(values, axis=1)
    rows = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    order = np.argsort(values[rows], axis=1, kind="stable")
    ordered = ordered[rows]
    found = np.zeros(order.shape, bool)
    np.put_along_axis(found, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    repeats[rows] = found
    return repeats


def draw_by_sorting(users: np.ndarray, touched: Touched, num_negatives: int, rng: np.random.Generator) -> np.ndarray:
    """Gives every item a random key, touched ones the last, and takes the first: for catalogues with little left."""
    keys = rng.random((len(users), touched.num_items))
    keys[touched.has(users[:, None], np.arange(touched.num_items))] = np.inf
    order = np.argsort(keys, axis=1)[:, :num_negatives]
    drawn = np.where(np.isinf(np.take_along_axis(keys, order, axis=1)), PAD, order)
    missing = num_negatives - drawn.shape[1]
    return np.pad(drawn, ((0, 0), (0, missing)), constant_values=PAD)


def shuffle(candidates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every row in random order, padding kept at its end.

    The order is that of ``rng.random``, whose doubles are the upper 53 bits of the numbers drawn here: the place in the
    row stands in the other 11, so that what is sorted brings the places along.
    """
    rows, width = candidates.shape
    if width > PLACES + 1:
        raise ValueError(f"a row has {width} candidates, expected at most {PLACES + 1}")
    keys = rng.integers(0, 1 << 64, size=candidates.shape, dtype=np.uint64)
    keys &= UPPER
    keys |= np.arange(width, dtype=np.uint64)
    keys[candidates == PAD] |= UPPER
    keys.sort(axis=1)
    keys &= np.uint64(PLACES)
    shuffled: np.ndarray = np.take(candidates, keys.view(np.int64) + (np.arange(rows) * width)[:, None])
    return shuffled
