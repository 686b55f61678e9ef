"""The truth behind the simulated marketplace: the probability, under its rules, that an item comes next."""

from pathlib import Path

import numpy as np

from allrec.data import Dataset, SimulationConfig
from allrec.data.simulator import simulate
from allrec.data.simulator.market import NONE, SUCCESSOR_PROBABILITIES, Market, Users, make_market
from allrec.errors import InputError
from allrec.files import read_json

CHUNK_ROWS = 4_096


def true_probabilities(source: Path, dataset: Dataset, split: str = "test", protocol: str = "paper") -> np.ndarray:
    """The probability that each stored candidate comes next, within the whole catalogue.

    Args:
        source: the folder that ``simulate`` wrote.
        dataset: what ``prepare`` made of it, unfiltered.
        split: "valid" or "test".
        protocol: "paper" or "sampled-99".

    Returns:
        float [rows, candidates], 0 for padding.

    Raises:
        InputError: the data set was made of something else.
    """
    market = make_market(SimulationConfig(**read_json(source / simulate.CONFIG_FILE)))
    refuse_other_dataset(dataset, market.config)
    targets = dataset.targets[split]
    true = np.zeros(targets.candidates[protocol].shape)
    for chunk in range(simulate.num_chunks(market.config)):
        users = simulate.make_users(chunk, market)
        rows_of_chunk = np.flatnonzero(targets.users // simulate.CHUNK_USERS == chunk)
        for start in range(0, len(rows_of_chunk), CHUNK_ROWS):
            rows = rows_of_chunk[start : start + CHUNK_ROWS]
            some = Users(*(table[targets.users[rows] % simulate.CHUNK_USERS] for table in users))
            histories = pad_histories(dataset, targets.users[rows], targets.positions[rows])
            is_late = np.ones(len(rows), bool)
            true[rows] = probabilities(market, some, histories, targets.candidates[protocol][rows], is_late)
    return true


def refuse_other_dataset(dataset: Dataset, config: SimulationConfig) -> None:
    """Refuses a data set whose users and items are not the simulation's, in its order."""
    if dataset.num_users != config.num_users or dataset.item_ids != simulate.item_ids(0, config.num_items):
        raise InputError(
            f"{dataset.path} has {dataset.num_users} users and {dataset.num_items} items, "
            f"expected {config.num_users} and {config.num_items} of this simulation. "
            f"Prepare it from the simulation's folder, without filters."
        )


def pad_histories(dataset: Dataset, users: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Each user's first ``lengths`` items, int [rows, longest], -1 at the end."""
    places = np.arange(lengths.max())
    is_held = places < lengths[:, None]
    wanted = np.where(is_held, dataset.offsets[users][:, None] + places, 0)
    return np.where(is_held, dataset.items[wanted], NONE)


def probabilities(
    market: Market, users: Users, histories: np.ndarray, candidates: np.ndarray, is_late: np.ndarray
) -> np.ndarray:
    """The true probability that each candidate comes next.

    Args:
        market: the marketplace's rules.
        users: one row a row of ``histories``.
        histories: int [rows, length], oldest first, -1 at the end; none empty.
        candidates: int [rows, candidates]; -1 gets probability 0.
        is_late: bool [rows], whether new items are on sale.

    Returns:
        float [rows, candidates].
    """
    lengths = (histories != NONE).sum(axis=1)
    last = histories[np.arange(len(histories)), lengths - 1]
    early, late = (
        item_shares(market, users, candidates, np.where(is_sold, market.items.weights, 0.0))
        for is_sold in (~market.items.is_new, True)
    )
    kinds = kind_shares(market, users, market.items.kinds[last], market.items.kinds[candidates])
    fresh = kinds * np.where(is_late[:, None], late, early)
    matches = (histories[:, None, :] == candidates[:, :, None]).sum(axis=2) / lengths[:, None]
    share, of_last = market.config.repeat_share, market.config.repeat_last_share
    repeated = of_last * (candidates == last[:, None]) + (1 - of_last) * matches
    return np.where(candidates == NONE, 0.0, share * repeated + (1 - share) * fresh)


def kind_shares(market: Market, users: Users, last_kinds: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """The probability that each user's next fresh item is of each kind, float [rows, candidates]."""
    follow = market.config.follow_share
    taste = (users.kinds[:, None, :] == kinds[:, :, None]) * users.kind_weights[:, None, :]
    successors = market.kinds.successors[last_kinds]
    following = (successors[:, None, :] == kinds[:, :, None]) * np.array(SUCCESSOR_PROBABILITIES)
    return follow * following.sum(axis=2) + (1 - follow) * taste.sum(axis=2)


def item_shares(market: Market, users: Users, candidates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The probability of each candidate, given its kind and each item's weight, float [rows, candidates]."""
    items, loyalty = market.items, market.config.loyalty
    kinds = items.kinds[candidates]
    of_any = share(weights[candidates], np.bincount(items.kinds, weights)[kinds])
    totals = np.zeros((len(market.kinds.names), market.num_brands))
    np.add.at(totals, (items.kinds, items.brands), weights)
    favourites = users.brands[np.arange(len(candidates))[:, None], market.kinds.departments[kinds]]
    of_favourites = totals[kinds[..., None], favourites]
    is_brand = items.brands[candidates][..., None] == favourites
    of_brand = share(np.where(is_brand, weights[candidates][..., None], 0.0), of_favourites)
    # Where the favourite brand has nothing on sale, the choice falls back to any brand.
    chosen = np.where(of_favourites > 0, of_brand, of_any[..., None])
    return (1 - loyalty) * of_any + loyalty * (chosen * users.brand_weights[:, None, :]).sum(axis=2)


def share(weights: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Each weight's share of its total; 0 of nothing."""
    return np.divide(weights, totals, out=np.zeros(np.broadcast(weights, totals).shape), where=totals > 0)
