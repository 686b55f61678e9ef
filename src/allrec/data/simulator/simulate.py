"""A simulated marketplace: tastes, sequences, repeats, popularity, cold items, and the truth behind them."""

from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from allrec import seeds
from allrec.data.dataset import Dataset
from allrec.data.simulator.choice import NONE, Market, Users
from allrec.data.simulator.config import SimulationConfig
from allrec.data.simulator.items import item_ids, make_items, make_kinds, write_items
from allrec.errors import InputError
from allrec.files import read_json, staging, write_json

CONFIG_FILE = "simulation.json"
CHUNK_USERS = 50_000
CHUNK_ROWS = 4_096
LENGTH_SPREAD = 0.6
NUM_LAST = 2
DAY = 86_400
YEAR_START = 1_704_067_200  # 2024-01-01, UTC seconds
LAST_WEEKS_FROM = YEAR_START + 350 * DAY
YEAR_END = YEAR_START + 364 * DAY


def simulate(
    out: Path | str, config: SimulationConfig | None = None, progress: Callable[[str], None] = lambda step: None
) -> Path:
    """Writes a marketplace as a source for ``prepare``: ``interactions.csv`` and ``items.jsonl``.

    Every user's last two interactions fall into the last two weeks, when the new items come on sale: these occur as
    targets and never in training. Two hands make the same bytes of the same options: the truth is made again from
    ``simulation.json`` (see ``true_probabilities``), so none has to be stored.

    Args:
        out: the source's folder; an older simulation there is replaced, anything else is left alone.
        config: size and behaviour.
        progress: told in a few words what begins.

    Returns:
        The folder.

    Raises:
        InputError: ``out`` is something else.
    """
    config = config or SimulationConfig()
    with staging(Path(out), is_simulation, "simulated marketplace") as folder:
        progress("composing items")
        market = make_market(config)
        rng = seeds.rng(config.seed, "simulator", "texts")
        write_items(folder / "items.jsonl", market.kinds, market.items, config, rng)
        progress("simulating interactions")
        with open(folder / "interactions.csv", "wb") as file:
            for chunk in range(num_chunks(config)):
                write_interactions(file, chunk, market)
        write_json(folder / CONFIG_FILE, config.model_dump())
    return Path(out)


def is_simulation(path: Path) -> bool:
    """Whether a folder is a simulated marketplace."""
    return (path / CONFIG_FILE).is_file()


def num_chunks(config: SimulationConfig) -> int:
    """How many chunks the users come in."""
    return -(-config.num_users // CHUNK_USERS)


def make_market(config: SimulationConfig) -> Market:
    """The marketplace's rules, which the configuration fixes."""
    rng = seeds.rng(config.seed, "simulator", "items")
    kinds = make_kinds(config, rng)
    return Market(kinds, make_items(kinds, config, rng), config)


def make_users(chunk: int, market: Market) -> Users:
    """The tastes of a chunk of users, which the configuration fixes."""
    config = market.config
    rng = seeds.rng(config.seed, "simulator", "users", chunk)
    num_users = min(CHUNK_USERS, config.num_users - chunk * CHUNK_USERS)
    num_kinds, num_departments = len(market.kinds.names), int(market.kinds.departments.max()) + 1
    num_chosen = min(config.kinds_per_user, num_kinds)
    # Kinds differ in popularity: keys to the power of 1/weight make a weighted draw without replacement.
    appeal = rng.random((num_users, num_kinds)) ** np.sqrt(np.arange(1, num_kinds + 1))
    kinds = np.argsort(-appeal, axis=1)[:, :num_chosen]
    places = (rng.random((num_users, num_departments, 2)) ** 2 * config.brands_per_department).astype(np.int64)
    return Users(
        kinds,
        rng.dirichlet(np.full(num_chosen, config.taste_concentration), num_users),
        np.arange(num_departments)[:, None] * config.brands_per_department + places,
        rng.dirichlet(np.full(2, config.brand_concentration), num_users),
    )


def draw_lengths(num_users: int, config: SimulationConfig, rng: np.random.Generator) -> np.ndarray:
    """How many interactions each user has, int [users], log-normal."""
    mean = np.log(config.mean_interactions) - LENGTH_SPREAD**2 / 2
    lengths = np.rint(rng.lognormal(mean, LENGTH_SPREAD, num_users))
    return np.clip(lengths, 1, config.max_interactions).astype(np.int64)


def draw_sequences(users: Users, lengths: np.ndarray, market: Market, rng: np.random.Generator) -> np.ndarray:
    """Every user's items, int32 [users, longest], oldest first, -1 at the end."""
    sequences = np.full((len(lengths), int(lengths.max())), NONE, np.int32)
    for step in range(sequences.shape[1]):
        for is_late, shelves in ((False, market.early), (True, market.late)):
            rows = np.flatnonzero((lengths > step) & (is_late_step(lengths, step) == is_late))
            some = Users(*(table[rows] for table in users))
            history = sequences[rows, :step]
            last_kinds = market.items.kinds[history[:, -1]] if step else np.full(len(rows), NONE)
            fresh = market.draw_items(some, market.draw_kinds(some, last_kinds, rng), shelves, rng)
            sequences[rows, step] = repeat_some(fresh, history, market.config, rng)
    return sequences


def is_late_step(lengths: np.ndarray, step: int | np.ndarray) -> np.ndarray:
    """Whether interaction ``step`` of a sequence of that length falls into the last weeks; bool [lengths]."""
    return (lengths > NUM_LAST) & (step >= lengths - NUM_LAST)


def repeat_some(
    fresh: np.ndarray, history: np.ndarray, config: SimulationConfig, rng: np.random.Generator
) -> np.ndarray:
    """Puts an item of the history in the place of some fresh ones: mostly the last, else any."""
    num_users, step = history.shape
    if step == 0:
        return fresh
    is_last = rng.random(num_users) < config.repeat_last_share
    place = np.where(is_last, step - 1, rng.integers(step, size=num_users))
    return np.where(rng.random(num_users) < config.repeat_share, history[np.arange(num_users), place], fresh)


def draw_times(lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """UTC seconds of every interaction, user after user, ascending within a user; int64 [interactions]."""
    users = np.repeat(np.arange(len(lengths)), lengths)
    steps = np.arange(len(users)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    is_late = is_late_step(lengths[users], steps)
    start = np.where(is_late, LAST_WEEKS_FROM, YEAR_START)
    stop = np.where(is_late, YEAR_END, LAST_WEEKS_FROM)
    times = start + (rng.random(len(users)) * (stop - start)).astype(np.int64)
    ordered: np.ndarray = times[np.lexsort((times, users))]
    return ordered


def write_interactions(file: IO[bytes], chunk: int, market: Market) -> None:
    """Simulates a chunk of users and appends their interactions."""
    config = market.config
    rng = seeds.rng(config.seed, "simulator", "sequences", chunk)
    users = make_users(chunk, market)
    lengths = draw_lengths(len(users.kinds), config, rng)
    sequences = draw_sequences(users, lengths, market, rng)
    numbers = np.repeat(np.arange(len(lengths)) + chunk * CHUNK_USERS, lengths)
    table = pl.DataFrame({"user": numbers, "item": sequences[sequences != NONE], "timestamp": draw_times(lengths, rng)})
    ids = [
        pl.format("{}{}", pl.lit(letter), pl.col(name).cast(pl.String).str.zfill(7)).alias(f"{name}_id")
        for name, letter in (("user", "u"), ("item", "i"))
    ]
    table.select(*ids, "timestamp").write_csv(file, include_header=chunk == 0)


def true_probabilities(
    source: Path | str, dataset: Dataset, split: str = "test", protocol: str = "paper"
) -> np.ndarray:
    """The oracle: the probability, under the rules of the marketplace, that each stored candidate comes next.

    Args:
        source: the folder that ``simulate`` wrote.
        dataset: what ``prepare`` made of it, unfiltered.
        split: "valid" or "test".
        protocol: "paper" or "sampled-99".

    Returns:
        float [rows, candidates], probabilities within the whole catalogue; 0 for padding.

    Raises:
        InputError: the folder is no simulation, or the data set was made of something else.
    """
    market = make_market(SimulationConfig(**read_json(Path(source) / CONFIG_FILE)))
    refuse_other_dataset(dataset, market.config)
    targets = dataset.targets[split]
    probabilities = np.zeros(targets.candidates[protocol].shape)
    for chunk in range(num_chunks(market.config)):
        users = make_users(chunk, market)
        rows_of_chunk = np.flatnonzero(targets.users // CHUNK_USERS == chunk)
        for start in range(0, len(rows_of_chunk), CHUNK_ROWS):
            rows = rows_of_chunk[start : start + CHUNK_ROWS]
            some = Users(*(table[targets.users[rows] % CHUNK_USERS] for table in users))
            histories = pad_histories(dataset, targets.users[rows], targets.positions[rows])
            is_late = np.ones(len(rows), bool)
            probabilities[rows] = market.probabilities(some, histories, targets.candidates[protocol][rows], is_late)
    return probabilities


def refuse_other_dataset(dataset: Dataset, config: SimulationConfig) -> None:
    """Refuses a data set whose users and items are not the simulation's, in its order.

    Raises:
        InputError: what differs.
    """
    is_same = dataset.num_users == config.num_users and dataset.item_ids == item_ids(0, config.num_items)
    if not is_same:
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
