"""Simulates users, their interaction sequences and the items' texts, and writes them as a source for ``prepare``."""

from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from allrec import seeds
from allrec.data.simulator.market import (
    DEPARTMENTS,
    NONE,
    WORDS,
    Kinds,
    Market,
    SimulatedItems,
    SimulationConfig,
    Users,
    make_market,
)
from allrec.files import staging, write_json

CONFIG_FILE = "simulation.json"
CHUNK_USERS = 50_000
CHUNK_ITEMS = 100_000
LENGTH_SPREAD = 0.6
NUM_LAST = 2
DAY = 86_400
YEAR_START = 1_704_067_200  # 2024-01-01, UTC seconds
LAST_WEEKS_FROM = YEAR_START + 350 * DAY
YEAR_END = YEAR_START + 364 * DAY
MAX_TRAITS = 3
TRAIT_PROBABILITIES = (0.4, 0.4, 0.2)
NUM_TRAITS = len(DEPARTMENTS[0].traits)
SHOWN = {"series": 0.6, "model": 0.2, "use": 0.4, "size": 0.35}
MAX_WORDS = 12


def simulate(out: Path | str, config: SimulationConfig | None = None) -> Path:
    """Writes a marketplace as a source for ``prepare``: ``interactions.csv`` and ``items.jsonl``.

    Every user's last two interactions fall into the last two weeks, when the new items come on sale: these occur as
    targets and never in training. Equal options give equal bytes; ``simulation.json`` keeps them, so that an oracle can
    work out the true probabilities from it.

    Args:
        out: the source's folder; an older simulation there is replaced, anything else is left alone.
        config: size and behaviour.

    Returns:
        The folder.

    Raises:
        InputError: ``out`` is something else.
    """
    config = config or SimulationConfig()
    with staging(Path(out), is_simulation, "simulated marketplace") as folder:
        market = make_market(config)
        rng = seeds.rng(config.seed, "simulator", "texts")
        write_items(folder / "items.jsonl", market.kinds, market.items, config, rng)
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


def brand_name(number: int) -> str:
    """A brand's name, different for every number: Norwick, Velmora, ..., then Norwick Works, ..."""
    heads, tails, ends = (WORDS[part] for part in ("brand_heads", "brand_tails", "brand_ends"))
    end, number = divmod(number, len(heads) * len(tails))
    turn, place = divmod(number, len(tails))
    # 7 and 11 are prime to the lists' lengths: every pair comes once, and neighbours sound different.
    name: str = heads[(turn + 11 * place) % len(heads)] + tails[7 * place % len(tails)]
    if end == 0:
        return name
    series, ending = divmod(end - 1, len(ends))
    return f"{name} {ends[ending]}" + (f" {series + 1}" if series else "")


def item_ids(start: int, stop: int) -> list[str]:
    """The string ids of items ``start`` to ``stop``."""
    return [f"i{number:07d}" for number in range(start, stop)]


def write_items(
    path: Path, kinds: Kinds, items: SimulatedItems, config: SimulationConfig, rng: np.random.Generator
) -> None:
    """Writes the catalogue as JSON lines, a chunk at a time."""
    num_brands = len(DEPARTMENTS) * config.brands_per_department
    brands = [brand_name(number) for number in range(num_brands)]
    with open(path, "wb") as file:
        for start in range(0, config.num_items, CHUNK_ITEMS):
            stop = min(start + CHUNK_ITEMS, config.num_items)
            chunk = describe(kinds, items.kinds[start:stop], [brands[b] for b in items.brands[start:stop]], rng)
            share = rng.random(stop - start)
            described = chunk.with_columns(
                pl.Series("item_id", item_ids(start, stop)),
                pl.when(pl.Series(share >= config.undescribed_share)).then("description"),
            )
            described.select("item_id", "title", "description", "brand", "genres").write_ndjson(file)


def describe(kinds: Kinds, of_kind: np.ndarray, brands: list[str], rng: np.random.Generator) -> pl.DataFrame:
    """Titles of 3 to 12 words, descriptions of 1 to 4 sentences, brand and genres, for a chunk of items."""
    departments = kinds.departments[of_kind]
    columns = {
        "brand": brands,
        "kind": [kinds.names[kind] for kind in of_kind],
        "follower": [kinds.names[kind] for kind in kinds.successors[of_kind, 0]],
        "department": [DEPARTMENTS[number].name for number in departments],
        "sentences": rng.integers(1, 5, len(of_kind)),
        **draw_traits(departments, rng),
        **draw_phrases(departments, rng),
    }
    table = pl.DataFrame(columns)
    shown = [
        pl.when(pl.Series(rng.random(len(of_kind)) < share)).then(name).alias(f"shown_{name}")
        for name, share in SHOWN.items()
    ]
    return table.with_columns(shown).select(
        title(), description(), "brand", genres=pl.concat_list("department", "kind")
    )


def draw_traits(departments: np.ndarray, rng: np.random.Generator) -> dict[str, list[str | None]]:
    """One to three different traits of each item's department, as columns trait0, trait1, trait2."""
    num_traits = rng.choice(MAX_TRAITS, len(departments), p=TRAIT_PROBABILITIES) + 1
    chosen = np.argsort(rng.random((len(departments), NUM_TRAITS)), axis=1)[:, :MAX_TRAITS]
    return {
        f"trait{place}": [
            DEPARTMENTS[department].traits[trait] if place < count else None
            for department, trait, count in zip(departments, chosen[:, place], num_traits, strict=True)
        ]
        for place in range(MAX_TRAITS)
    }


def draw_phrases(departments: np.ndarray, rng: np.random.Generator) -> dict[str, list[str]]:
    """A use, a size, a series and a model number for each item."""
    use, size, series, model = rng.integers(2**31, size=(4, len(departments)))
    uses, sizes = [department.uses for department in DEPARTMENTS], [department.sizes for department in DEPARTMENTS]
    return {
        "use": [uses[number][draw % len(uses[number])] for number, draw in zip(departments, use, strict=True)],
        "size": [sizes[number][draw % len(sizes[number])] for number, draw in zip(departments, size, strict=True)],
        "series": [WORDS["series"][draw % len(WORDS["series"])] for draw in series],
        "model": [str(100 + 10 * (draw % 90)) for draw in model],
    }


def title() -> pl.Expr:
    """Brand, series, model, traits, kind, use, size: those that an item shows, in this order, and fewer if too long."""
    names = ("brand", "shown_series", "shown_model", "trait0", "trait1", "trait2", "kind", "shown_use", "shown_size")
    whole = pl.concat_str(names, separator=" ", ignore_nulls=True)
    short = pl.concat_str("brand", "shown_model", "trait0", "kind", "shown_size", separator=" ", ignore_nulls=True)
    return pl.when(whole.str.count_matches(" ") < MAX_WORDS).then(whole).otherwise(short).alias("title")


def description() -> pl.Expr:
    """The first one to four of four sentences."""
    traits = pl.concat_str("trait0", "trait1", "trait2", separator=", ", ignore_nulls=True).str.to_lowercase()
    kind = pl.col("kind").str.to_lowercase()
    sentences = [
        pl.format("This {} by {} is {} and made {}.", kind, "brand", traits, "use"),
        pl.format("It belongs to the {} series of our {} department.", "series", "department"),
        pl.format("Customers who chose it often go on to a {}.", pl.col("follower").str.to_lowercase()),
        pl.format("Size: {}.", "size"),
    ]
    shown = [pl.when(pl.col("sentences") > place).then(sentence) for place, sentence in enumerate(sentences)]
    return pl.concat_str(shown, separator=" ", ignore_nulls=True).alias("description")
