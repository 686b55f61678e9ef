"""The rules of the simulated marketplace: items and kinds, users' tastes, and the choice of the next item."""

import tomllib
from importlib.resources import files
from typing import Any, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from allrec import seeds
from allrec.errors import Config

NONE = -1
MIN_ITEMS_OF_A_KIND = 8
SUCCESSOR_PROBABILITIES = (0.7, 0.3)


class SimulationConfig(Config):
    """How large the simulated marketplace is, and how its customers behave."""

    num_users: int = Field(2_000, ge=1, description="Users.")
    num_items: int = Field(1_000, ge=8, description="Items in the catalogue.")
    mean_interactions: float = Field(10.0, ge=1, description="Interactions a user, on average (log-normal).")
    max_interactions: int = Field(50, ge=3, description="Most interactions of a user.")
    brands_per_department: int = Field(6, ge=1, description="Brands in each of the eight departments.")
    kinds_per_user: int = Field(4, ge=1, description="Kinds that a user has a taste for.")
    taste_concentration: float = Field(0.7, gt=0, description="Dirichlet parameter of a user's taste for those kinds.")
    brand_concentration: float = Field(0.5, gt=0, description="Dirichlet parameter of a user's taste for two brands.")
    follow_share: float = Field(0.35, ge=0, le=1, description="How often the last kind decides the next one.")
    loyalty: float = Field(0.6, ge=0, le=1, description="How often a favourite brand of the department is chosen.")
    repeat_share: float = Field(0.12, ge=0, le=1, description="How often an item of the history is bought again.")
    repeat_last_share: float = Field(0.7, ge=0, le=1, description="How often a repeat is of the very last item.")
    popularity_exponent: float = Field(0.8, ge=0, description="Popularity falls with rank to this power.")
    new_share: float = Field(0.1, ge=0, le=1, description="Items on sale in the last two weeks alone.")
    unsold_share: float = Field(0.05, ge=0, le=1, description="Items that nobody ever buys.")
    undescribed_share: float = Field(0.1, ge=0, le=1, description="Items without a description.")
    seed: int = Field(0, ge=0, description="Fixes the whole marketplace.")

    @model_validator(mode="after")
    def _check_cold(self) -> Self:
        if self.new_share + self.unsold_share > 1:
            raise ValueError(
                f"new_share {self.new_share} and unsold_share {self.unsold_share} are more than all items; lower one."
            )
        return self


class Department(NamedTuple):
    """One department of the marketplace.

    Attributes:
        name: its name, also a genre of its items.
        kinds: what it sells.
        traits: adjectives and materials that fit all of its kinds.
        uses: ends of a title, and what a description recommends the item for.
        sizes: ends of a title.
    """

    name: str
    kinds: list[str]
    traits: list[str]
    uses: list[str]
    sizes: list[str]


WORDS: dict[str, Any] = tomllib.loads(files(__package__).joinpath("words.toml").read_text(encoding="utf-8"))
DEPARTMENTS = [Department(**table) for table in WORDS["departments"]]


class Kinds(NamedTuple):
    """What is sold, and what is bought after what.

    Attributes:
        names: of every kind.
        departments: int [kinds].
        successors: int [kinds, 2], the kinds that follow a kind, in its own department.
    """

    names: list[str]
    departments: np.ndarray
    successors: np.ndarray


class SimulatedItems(NamedTuple):
    """What decides how often every item is bought.

    Attributes:
        kinds: int [items].
        brands: int [items].
        weights: float [items], popularity; 0 for items that nobody ever buys.
        is_new: bool [items], on sale in the last two weeks alone.
    """

    kinds: np.ndarray
    brands: np.ndarray
    weights: np.ndarray
    is_new: np.ndarray


class WeightedGroups:
    """Draws an item of a group by weight, for many groups at once.

    Args:
        groups: int [items], the group of every item.
        weights: float [items], not negative.
        num_groups: how many groups there are; some may be empty.
    """

    def __init__(self, groups: np.ndarray, weights: np.ndarray, num_groups: int) -> None:
        self.order = np.argsort(groups, kind="stable")
        self.cumulated = np.concatenate([[0.0], np.cumsum(weights[self.order])])
        self.starts = np.searchsorted(groups[self.order], np.arange(num_groups + 1))

    def draw(self, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An item of each group, int [draws]; -1 where all of the group's items weigh nothing."""
        low, high = (self.cumulated[self.starts[groups + step]] for step in (0, 1))
        value = np.minimum(low + rng.random(len(groups)) * (high - low), np.nextafter(high, 0))
        place = np.searchsorted(self.cumulated, value, side="right") - 1
        return np.where(high > low, self.order[np.clip(place, 0, len(self.order) - 1)], NONE)


class Shelves(NamedTuple):
    """What is on sale in one phase: items by kind, and by kind and brand.

    Attributes:
        by_kind: groups are kinds.
        by_brand: groups are kind * brands + brand.
    """

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
        items: kind, brand and popularity of every item.
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


def choose(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A column of each row, by the row's weights (sum 1); int [rows]."""
    value = rng.random((len(weights), 1))
    columns: np.ndarray = (np.cumsum(weights, axis=1) <= value).sum(axis=1)
    return np.minimum(columns, weights.shape[1] - 1)


def make_kinds(config: SimulationConfig, rng: np.random.Generator) -> Kinds:
    """Takes as many kinds as the catalogue can fill, spread over the departments, and lets kinds follow each other."""
    pairs = [(number, kind) for kind in range(8) for number in range(len(DEPARTMENTS))]
    pairs = sorted(pairs[: max(1, config.num_items // MIN_ITEMS_OF_A_KIND)])
    departments = np.array([department for department, _ in pairs])
    names = [DEPARTMENTS[department].kinds[kind] for department, kind in pairs]
    successors = np.empty((len(pairs), len(SUCCESSOR_PROBABILITIES)), np.int64)
    for department in np.unique(departments):
        # Going round a random circle, one and two steps on: every kind is reached, none follows itself if it can.
        circle = rng.permutation(np.flatnonzero(departments == department))
        successors[circle] = np.column_stack([np.roll(circle, -step) for step in (1, 2)])
    return Kinds(names, departments, successors)


def make_items(kinds: Kinds, config: SimulationConfig, rng: np.random.Generator) -> SimulatedItems:
    """Draws every item's kind, brand, popularity, and whether it is cold."""
    num_items, num_kinds = config.num_items, len(kinds.names)
    of_kind = np.arange(num_items) % num_kinds
    rank = rng.permutation(num_items) + 1.0
    weights = rank**-config.popularity_exponent
    is_first = np.arange(num_items) < num_kinds
    draw = np.where(is_first, 1.0, rng.random(num_items))
    is_unsold = draw < config.unsold_share
    is_new = ~is_unsold & (draw < config.unsold_share + config.new_share)
    weights[is_unsold] = 0.0
    # Few brands take most of a department: the square pulls the uniform draw towards its first brands.
    place = (rng.random(num_items) ** 2 * config.brands_per_department).astype(np.int64)
    brands = kinds.departments[of_kind] * config.brands_per_department + place
    return SimulatedItems(of_kind, brands, weights, is_new)


def make_market(config: SimulationConfig) -> Market:
    """The marketplace that a configuration fixes."""
    rng = seeds.rng(config.seed, "simulator", "items")
    kinds = make_kinds(config, rng)
    return Market(kinds, make_items(kinds, config, rng), config)
