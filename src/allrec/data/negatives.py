"""Negative sampling: one negative at a time for training, or candidate lists of a target among negatives."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from allrec import seeds
from allrec.data.protocols import NUM_NEGATIVES as NUM_NEGATIVES
from allrec.errors import notice

CHUNK_ROWS = 4_096
CHUNK_CELLS = 1 << 23
PAD = -1
# With this many items left a negative and more, rejection sampling is fast.
ROOMY = 4
# Interacted items concatenated to a row's negatives, at most; negatives of the few users with more are looked up.
MAX_BESIDE = 512
MOST = 0.95
# The lowest bits of a random key, beyond a double's 53, hold the position within the row.
PLACES = (1 << 11) - 1
UPPER = np.uint64((1 << 64) - 1 - PLACES)


def distinct_pairs(users: np.ndarray, items: np.ndarray, num_items: int) -> np.ndarray:
    """The distinct (user, item) pairs as user · num_items + item, int64, ascending."""
    keys = users.astype(np.int64) * num_items
    keys += items
    keys.sort()
    # np.unique hashes before it sorts, which takes longer than sorting at once and several times the memory.
    return keys[np.diff(keys, prepend=-1) > 0]


class UserItems:
    """The items that each user interacted with, for looking up many (user, item) pairs at once.

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

    def padded(self, users: np.ndarray, width: int) -> np.ndarray:
        """The first ``width`` items of each user, int32 [users, width], padded with distinct negative numbers."""
        columns = np.arange(width)
        items = np.take(self.items, self.starts[users, None] + columns, mode="clip")
        return np.where(columns < self.counts[users, None], items, (-1 - columns).astype(np.int32))

    def has(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Whether each user interacted with each item; arrays that broadcast against each other."""
        if users.size == 0 or len(self.keys) == 0:
            return np.zeros(np.broadcast_shapes(users.shape, items.shape), bool)
        wanted = users.astype(np.int64) * self.num_items + items
        # Users of one call are mostly neighbours, and a short array is searched within the CPU's caches.
        bounds = np.array([users.min(), users.max() + 1], np.int64) * self.num_items
        keys = self.keys[slice(*np.searchsorted(self.keys, bounds))]
        places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        is_pair: np.ndarray = keys[places] == wanted if len(keys) else np.zeros(wanted.shape, bool)
        return is_pair


class NegativeSampler:
    """Draws items that a user never interacted with, uniformly and without rejection.

    The r-th of a user's negatives is r plus the number of interacted items before it. With those sorted,
    t_0 < t_1 < ..., these are the j with t_j - j <= r: one binary search.

    Attributes:
        has_negative: bool [users], whether any item is left as a negative.
    """

    def __init__(self, offsets: Int[np.ndarray, "offsets"], items: Int[np.ndarray, "interactions"], num_items: int):
        num_users = len(offsets) - 1
        users = np.repeat(np.arange(num_users), np.diff(offsets))
        pairs = distinct_pairs(users, items, num_items)
        users = pairs // num_items
        self.num_items = num_items
        self.num_interacted = np.bincount(users, minlength=num_users)
        self.has_negative = self.num_interacted < num_items
        self.first = np.cumsum(self.num_interacted) - self.num_interacted
        self.shifted = pairs - (np.arange(len(pairs)) - self.first[users])

    @classmethod
    def of(
        cls,
        user_ids: Sequence[str],
        offsets: Int[np.ndarray, "offsets"],
        items: Int[np.ndarray, "interactions"],
        num_items: int,
    ) -> "NegativeSampler":
        """A sampler over training interactions; warns of users who have interacted with every item.

        Where that is every user with a target, negatives come from the whole catalogue.

        Args:
            user_ids: for messages.
            offsets: where each user's training items begin.
            items: these items.
            num_items: how many items the catalogue has.
        """
        sampler = cls(offsets, items, num_items)
        full = np.flatnonzero(~sampler.has_negative)
        if len(full) == 0:
            return sampler
        learners, everything = np.diff(offsets) > 1, f"interacted with all {num_items} items"
        if not (sampler.has_negative & learners).any():
            notice(f"every user has {everything}: negatives are drawn from the whole catalogue.")
            return cls(np.zeros_like(offsets), items[:0], num_items)
        who = f"user {user_ids[full[0]]!r} has {everything} and is"
        if len(full) > 1:
            who = f"{len(full):,} users, such as {user_ids[full[0]]!r}, have {everything} and are"
        notice(f"{who} left out where negatives are drawn; all else is learned from them too.")
        return sampler

    def draw(self, users: Int[np.ndarray, "rows"], rng: np.random.Generator) -> Int[np.ndarray, "rows"]:
        """One item for each user of ``users``, drawn independently; each of them ``has_negative``."""
        ranks = rng.integers(self.num_items - self.num_interacted[users])
        num_before = np.searchsorted(self.shifted, users * self.num_items + ranks, side="right") - self.first[users]
        return np.asarray(ranks + num_before)


def generators(seed: int, split: str) -> dict[int, np.random.Generator]:
    """What the negatives of a split are drawn with, by the number of negatives a target."""
    return {size: seeds.rng(seed, "negatives", split, size) for size in NUM_NEGATIVES.values()}


def draw_candidates(
    users: np.ndarray, targets: np.ndarray, seen: UserItems, num_negatives: int, rng: np.random.Generator
) -> np.ndarray:
    """The target among distinct uniform negatives, in random order.

    Args:
        users: int [rows].
        targets: int [rows].
        seen: the items that every user interacted with, in any split.
        num_negatives: negatives a row.
        rng: decides the negatives and the order.

    Returns:
        int32 [rows, 1 + num_negatives]; -1 at the end of a row where too few items are left.
    """
    candidates = np.empty((len(users), 1 + num_negatives), np.int32)
    for start in range(0, len(users), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        negatives = draw_negatives(users[rows], seen, num_negatives, rng)
        candidates[rows] = shuffle(np.column_stack([targets[rows], negatives]), rng)
    return candidates


def draw_negatives(users: np.ndarray, seen: UserItems, num_negatives: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct uniform negatives of each user, int32 [rows, num_negatives], -1 at the end of short rows."""
    num_left = seen.num_items - seen.counts[users]
    is_roomy = num_left >= ROOMY * num_negatives
    if is_roomy.all():
        return draw_by_rejection(users, seen, num_negatives, rng)
    negatives = np.full((len(users), num_negatives), PAD, np.int32)
    roomy, tight = np.flatnonzero(is_roomy), np.flatnonzero(~is_roomy)
    negatives[roomy] = draw_by_rejection(users[roomy], seen, num_negatives, rng)
    step = max(1, CHUNK_CELLS // seen.num_items)
    for start in range(0, len(tight), step):
        rows = tight[start : start + step]
        negatives[rows] = draw_by_sorting(users[rows], seen, num_negatives, rng)
    return negatives


def draw_by_rejection(users: np.ndarray, seen: UserItems, num_negatives: int, rng: np.random.Generator) -> np.ndarray:
    """Draws items, and redraws interacted and repeated ones: uniform without replacement, int32."""
    negatives = rng.integers(seen.num_items, size=(len(users), num_negatives), dtype=np.int32)
    pending = np.arange(len(users))
    while len(pending):
        is_refused = are_refused(users[pending], negatives[pending], seen)
        has_refused = is_refused.any(axis=1)
        pending, is_refused = pending[has_refused], is_refused[has_refused]
        drawn = rng.integers(seen.num_items, size=int(is_refused.sum()), dtype=np.int32)
        rows, columns = np.nonzero(is_refused)
        negatives[pending[rows], columns] = drawn
    return negatives


def are_refused(users: np.ndarray, negatives: np.ndarray, seen: UserItems) -> np.ndarray:
    """Which negatives are interacted items, or repeat one further left; bool, the shape of ``negatives``.

    The user's items are concatenated to the negatives, so that both cases are repeats within a row, which sorting
    detects in a fraction of the time of looking each one up.
    """
    counts = seen.counts[users]
    width = min(int(np.quantile(counts, MOST, method="higher")), MAX_BESIDE)
    is_refused = is_repeated(np.concatenate([seen.padded(users, width), negatives], axis=1))[:, width:]
    longer = np.flatnonzero(counts > width)
    is_refused[longer] |= seen.has(users[longer, None], negatives[longer])
    return is_refused


def is_repeated(values: np.ndarray) -> np.ndarray:
    """Where a value repeats one further left in its row; bool, the shape of ``values``."""
    repeats = np.zeros(values.shape, bool)
    ordered = np.sort(values, axis=1)
    rows = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    order = np.argsort(values[rows], axis=1, kind="stable")
    ordered = ordered[rows]
    is_repeat = np.zeros(order.shape, bool)
    np.put_along_axis(is_repeat, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    repeats[rows] = is_repeat
    return repeats


def draw_by_sorting(users: np.ndarray, seen: UserItems, num_negatives: int, rng: np.random.Generator) -> np.ndarray:
    """Sorts all items by a random key, interacted ones last: for users with few items left."""
    keys = rng.random((len(users), seen.num_items))
    keys[seen.has(users[:, None], np.arange(seen.num_items))] = np.inf
    order = np.argsort(keys, axis=1)[:, :num_negatives]
    drawn = np.where(np.isinf(np.take_along_axis(keys, order, axis=1)), PAD, order)
    missing = num_negatives - drawn.shape[1]
    return np.pad(drawn, ((0, 0), (0, missing)), constant_values=PAD)


def shuffle(candidates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Every row in random order, padding kept at its end.

    The order is that of ``rng.random``, whose doubles are the upper 53 bits of the numbers drawn here: the
    position within the row takes the other 11, so that sorting the keys sorts the positions.
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
