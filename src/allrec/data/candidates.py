"""Fixed lists of candidates: the target among uniform negatives that the user never touched, shuffled."""

import numpy as np

NUM_NEGATIVES = {"paper": 19, "sampled-99": 99}
CHUNK_ROWS = 4_096
CHUNK_CELLS = 1 << 23
PAD = -1
# Above this many untouched items a wanted negative, drawing and drawing again is quick.
ROOMY = 4


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
        keys = np.sort(users.astype(np.int64) * num_items + items)
        # np.unique hashes before it sorts, which takes longer than sorting at once.
        self.keys = keys[np.diff(keys, prepend=-1) > 0]
        self.counts = np.bincount(self.keys // num_items, minlength=num_users)

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
    """Distinct uniform items that each user never touched, int64 [rows, num_negatives], -1 at the end of short rows."""
    negatives = np.full((len(users), num_negatives), PAD, np.int64)
    num_untouched = touched.num_items - touched.counts[users]
    is_roomy = num_untouched >= ROOMY * num_negatives
    roomy, tight = np.flatnonzero(is_roomy), np.flatnonzero(~is_roomy)
    negatives[roomy] = draw_by_rejection(users[roomy], touched, num_negatives, rng)
    step = max(1, CHUNK_CELLS // touched.num_items)
    for start in range(0, len(tight), step):
        rows = tight[start : start + step]
        negatives[rows] = draw_by_sorting(users[rows], touched, num_negatives, rng)
    return negatives


def draw_by_rejection(users: np.ndarray, touched: Touched, num_negatives: int, rng: np.random.Generator) -> np.ndarray:
    """Draws items, and again those that were touched or came twice: uniform without replacement."""
    negatives = rng.integers(touched.num_items, size=(len(users), num_negatives))
    pending = np.arange(len(users))
    while len(pending):
        is_refused = touched.has(users[pending, None], negatives[pending]) | is_repeated(negatives[pending])
        has_refused = is_refused.any(axis=1)
        pending, is_refused = pending[has_refused], is_refused[has_refused]
        drawn = rng.integers(touched.num_items, size=int(is_refused.sum()))
        rows, columns = np.nonzero(is_refused)
        negatives[pending[rows], columns] = drawn
    return negatives


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
    """Every row in random order, padding kept at its end."""
    keys = np.where(candidates == PAD, 2.0, rng.random(candidates.shape))
    shuffled: np.ndarray = np.take_along_axis(candidates, np.argsort(keys, axis=1), axis=1)
    return shuffled
