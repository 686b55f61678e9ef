"""How simulated users choose: weighted draws within groups of items, and the probability of every choice."""

from typing import NamedTuple

import numpy as np

from allrec.data.simulator.config import SimulationConfig
from allrec.data.simulator.items import SUCCESSOR_PROBABILITIES, Kinds, SimulatedItems

NONE = -1


class WeightedGroups:
    """Draws an item of a group by weight, for many groups at once.

    Args:
        groups: int [items], the group of every item.
        weights: float [items], not negative.
        num_groups: how many groups there are; some may be empty.
    """

    def __init__(self, groups: np.ndarray, weights: np.ndarray, num_groups: int) -> None:
        self.totals = np.bincount(groups, weights, num_groups)
        self.order = np.argsort(groups, kind="stable")
        self.cumulated = np.concatenate([[0.0], np.cumsum(weights[self.order])])
        self.starts = np.searchsorted(groups[self.order], np.arange(num_groups + 1))

    def draw(self, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An item of each group, int [draws]; -1 where all of the group's items weigh nothing."""
        low, high = (self.cumulated[self.starts[groups + step]] for step in (0, 1))
        value = np.minimum(low + rng.random(len(groups)) * (high - low), np.nextafter(high, 0))
        place = np.searchsorted(self.cumulated, value, side="right") - 1
        return np.where(high > low, self.order[np.clip(place, 0, len(self.order) - 1)], NONE)

    def share(self, weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """The probability of drawing an item of these weights from these groups; 0 from groups that weigh nothing."""
        totals = self.totals[groups]
        return np.divide(weights, totals, out=np.zeros(np.broadcast(weights, totals).shape), where=totals > 0)


class Shelves(NamedTuple):
    """What is on sale in one phase: items by kind, and by kind and brand.

    Attributes:
        weights: float [items], 0 for what is not on sale.
        by_kind: groups are kinds.
        by_brand: groups are kind * brands + brand.
    """

    weights: np.ndarray
    by_kind: WeightedGroups
    by_brand: WeightedGroups


class Users(NamedTuple):
    """The tastes of a chunk of users.

    Attributes:
        kinds: int [users, kinds a user].
        kind_weights: float [users, kinds a user], sum 1.
        brands: int [users, departments, 2], favourites in every department.
        brand_weights: float [users, 2], sum 1.
    """

    kinds: np.ndarray
    kind_weights: np.ndarray
    brands: np.ndarray
    brand_weights: np.ndarray


class Market:
    """The marketplace's rules: what a user with a taste and a history buys next.

    Args:
        kinds: what is sold and what follows what.
        items: the truth about the items.
        config: shares and exponents.
    """

    def __init__(self, kinds: Kinds, items: SimulatedItems, config: SimulationConfig) -> None:
        self.kinds, self.items, self.config = kinds, items, config
        self.num_brands = (int(kinds.departments.max()) + 1) * config.brands_per_department
        self.early = self._shelves(np.where(items.is_new, 0.0, items.weights))
        self.late = self._shelves(items.weights)

    def _shelves(self, weights: np.ndarray) -> Shelves:
        num_kinds = len(self.kinds.names)
        by_brand = self.items.kinds * self.num_brands + self.items.brands
        return Shelves(
            weights,
            WeightedGroups(self.items.kinds, weights, num_kinds),
            WeightedGroups(by_brand, weights, num_kinds * self.num_brands),
        )

    def draw_kinds(self, users: Users, last_kinds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The next kind of each user, int [users]: what follows the last one, or by taste; -1 is no last kind."""
        rows = np.arange(len(last_kinds))
        by_taste = users.kinds[rows, choose(users.kind_weights, rng)]
        second = rng.random(len(rows)) >= SUCCESSOR_PROBABILITIES[0]
        follows = (rng.random(len(rows)) < self.config.follow_share) & (last_kinds != NONE)
        return np.where(follows, self.kinds.successors[last_kinds, second.astype(int)], by_taste)

    def draw_items(self, users: Users, kinds: np.ndarray, shelves: Shelves, rng: np.random.Generator) -> np.ndarray:
        """An item of each user's next kind, int [users]: of a favourite brand where there is one, or of any."""
        rows = np.arange(len(kinds))
        brands = users.brands[rows, self.kinds.departments[kinds], choose(users.brand_weights, rng)]
        of_brand = shelves.by_brand.draw(kinds * self.num_brands + brands, rng)
        is_loyal = (rng.random(len(rows)) < self.config.loyalty) & (of_brand != NONE)
        return np.where(is_loyal, of_brand, shelves.by_kind.draw(kinds, rng))

    def probabilities(
        self, users: Users, histories: np.ndarray, candidates: np.ndarray, is_late: np.ndarray
    ) -> np.ndarray:
        """The true probability that each candidate comes next.

        Args:
            users: one row a row of ``histories``.
            histories: int [rows, length], oldest first, -1 at the end; none empty.
            candidates: int [rows, candidates]; -1 gets probability 0.
            is_late: bool [rows], whether new items are on sale.

        Returns:
            float [rows, candidates].
        """
        lengths = (histories != NONE).sum(axis=1)
        last = histories[np.arange(len(histories)), lengths - 1]
        kinds = self.items.kinds[candidates]
        early, late = (self.item_shares(users, candidates, shelves) for shelves in (self.early, self.late))
        fresh = self.kind_shares(users, self.items.kinds[last], kinds) * np.where(is_late[:, None], late, early)
        matches = (histories[:, None, :] == candidates[:, :, None]).sum(axis=2) / lengths[:, None]
        share, of_last = self.config.repeat_share, self.config.repeat_last_share
        repeated = of_last * (candidates == last[:, None]) + (1 - of_last) * matches
        return np.where(candidates == NONE, 0.0, share * repeated + (1 - share) * fresh)

    def kind_shares(self, users: Users, last_kinds: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        """The probability that each user's next fresh item is of each kind, float [rows, candidates]."""
        follow = self.config.follow_share
        taste = (users.kinds[:, None, :] == kinds[:, :, None]) * users.kind_weights[:, None, :]
        successors = self.kinds.successors[last_kinds]
        following = (successors[:, None, :] == kinds[:, :, None]) * np.array(SUCCESSOR_PROBABILITIES)
        shares: np.ndarray = follow * following.sum(axis=2) + (1 - follow) * taste.sum(axis=2)
        return shares

    def item_shares(self, users: Users, candidates: np.ndarray, shelves: Shelves) -> np.ndarray:
        """The probability of each candidate, given its kind, float [rows, candidates]."""
        loyalty, kinds = self.config.loyalty, self.items.kinds[candidates]
        weights = shelves.weights[candidates]
        of_any = shelves.by_kind.share(weights, kinds)
        favourites = users.brands[np.arange(len(candidates))[:, None], self.kinds.departments[kinds]]
        groups = kinds[..., None] * self.num_brands + favourites
        is_brand = self.items.brands[candidates][..., None] == favourites
        of_brand = shelves.by_brand.share(np.where(is_brand, weights[..., None], 0.0), groups)
        # Where the favourite brand has nothing on sale, the choice falls back to any brand.
        chosen = np.where(shelves.by_brand.totals[groups] > 0, of_brand, of_any[..., None])
        shares: np.ndarray = (1 - loyalty) * of_any + loyalty * (chosen * users.brand_weights[:, None, :]).sum(axis=2)
        return shares


def choose(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A column of each row, by the row's weights (sum 1); int [rows]."""
    value = rng.random((len(weights), 1))
    columns: np.ndarray = (np.cumsum(weights, axis=1) <= value).sum(axis=1)
    return np.minimum(columns, weights.shape[1] - 1)
