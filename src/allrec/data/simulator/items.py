"""The words that the simulated marketplace's titles and descriptions are composed from."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from allrec.data.simulator.config import SimulationConfig


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
    kinds: tuple[str, ...]
    traits: tuple[str, ...]
    uses: tuple[str, ...]
    sizes: tuple[str, ...]


def words(text: str) -> tuple[str, ...]:
    """A comma-separated list as a tuple."""
    return tuple(word.strip() for word in text.split(","))


DEPARTMENTS = (
    Department(
        "Kitchen",
        words("Kettle, Skillet, Espresso Maker, Chef Knife, Cutting Board, Stock Pot, Mixing Bowl, Pepper Mill"),
        words(
            "Stainless, Enameled, Cast Iron, Bamboo, Nonstick, Copper, Ceramic, Dishwasher Safe, Gooseneck, Hammered"
        ),
        words("for Induction Stoves, for Small Kitchens, for Slow Mornings, for Big Families, for Camping Cooks"),
        words("1.2 L, 2.5 Quart, 8 Inch, 10 Inch, Set of 3, Large"),
    ),
    Department(
        "Skin Care",
        words("Hand Cream, Face Serum, Body Wash, Lip Balm, Clay Mask, Night Cream, Sunscreen, Eye Gel"),
        words("Hydrating, Fragrance Free, Lavender, Vitamin C, Organic, Retinol, Oat Milk, Rosehip, Soothing, Vegan"),
        words("for Dry Skin, for Sensitive Skin, for Men, for Daily Use, for Tired Eyes, for Cold Weather"),
        words("50 ml, 100 ml, 1.7 oz, 8.4 oz, Pack of 2, Travel Size"),
    ),
    Department(
        "Garden",
        words(
            "Pruning Shears, Watering Can, Seed Tray, Garden Hose, Raised Bed, Bird Feeder, Hand Trowel, Compost Bin"
        ),
        words(
            "Galvanized, Cedar, Rustproof, Ergonomic, Foldable, Self Watering, Heavy Duty, Recycled, Frost Proof, Green"
        ),
        words("for Balconies, for Roses, for Vegetables, for Beginners, for Raised Beds, for Herbs"),
        words("2 Gallon, 50 Feet, 12 Cells, 4 x 8 Feet, Pack of 5, Small"),
    ),
    Department(
        "Audio",
        words("Headphones, Turntable, Bookshelf Speaker, Soundbar, Microphone, Amplifier, Radio, Audio Cable"),
        words("Wireless, Noise Canceling, Walnut, Portable, Studio Grade, Bluetooth, Retro, Slim, Waterproof, Hi-Fi"),
        words("for Podcasts, for Vinyl Lovers, for Late Nights, for Small Desks, for Travel, for Home Theaters"),
        words("6 Feet, 40 mm, 80 Watt, Pair, Compact, Mark II"),
    ),
    Department(
        "Outdoor",
        words("Tent, Sleeping Bag, Hiking Boots, Headlamp, Water Filter, Trekking Poles, Camp Stove, Dry Bag"),
        words("Ultralight, Four Season, Down, Waterproof, Carbon, Breathable, Rugged, Packable, Insulated, Quick Dry"),
        words("for Winter Trails, for Backpackers, for Two, for Rainy Weekends, for Alpine Starts, for Kayaking"),
        words("20 L, 2 Person, Size M, Size L, 350 Lumens, Pair"),
    ),
    Department(
        "Stationery",
        words("Fountain Pen, Notebook, Ink Bottle, Desk Lamp, Pencil Case, Wall Calendar, Sketch Pad, Letter Opener"),
        words("Dotted, Leather, Recycled, Hardcover, Fine Nib, Archival, Brass, Pastel, Acid Free, Refillable"),
        words("for Journaling, for Left Handers, for Students, for Architects, for Long Letters, for Watercolors"),
        words("A5, A4, 30 ml, 160 Pages, Pack of 3, Pocket"),
    ),
    Department(
        "Pets",
        words("Dog Bed, Cat Tree, Chew Toy, Food Bowl, Pet Carrier, Leash, Grooming Brush, Fish Tank"),
        words(
            "Orthopedic, Washable, Chewproof, Reflective, Quiet, Natural Rubber, Elevated, Soft, Airline Safe, Sisal"
        ),
        words("for Puppies, for Senior Cats, for Large Breeds, for Night Walks, for Small Flats, for Heavy Chewers"),
        words("Small, Medium, X Large, 6 Feet, 20 Gallon, Set of 2"),
    ),
    Department(
        "Toys",
        words("Block Set, Jigsaw Puzzle, Board Game, Plush Bear, Train Set, Marble Run, Kite, Science Kit"),
        words("Wooden, Magnetic, Glowing, Cooperative, Classic, Handmade, Musical, Giant, Colorful, Montessori"),
        words("for Toddlers, for Ages 6 and Up, for Rainy Days, for Two Players, for Curious Minds, for Family Nights"),
        words("100 Pieces, 500 Pieces, 1000 Pieces, Deluxe Edition, 12 Inch, Set of 4"),
    ),
)
BRAND_HEADS = words(
    "Nor, Vel, Bri, Cal, Lum, Tor, Ash, Mer, Quin, Hal, Ost, Fen, Gra, Iso, Jun, Kel, Lor, Mon, Nim, Oak, Pel, Ros, "
    "Sol, Tam, Ulm, Var, Wen, Xan, Yar, Zel"
)
BRAND_TAILS = words(
    "wick, mora, dale, ton, via, ells, mark, lyn, ane, isk, ford, bury, etto, ora, ingham, stad, field, nova, ric, "
    "haven, more, lace, ley, ino, eaux, berg, ward, quist, by, dor"
)
BRAND_ENDS = words("Works, Goods, House, Studio, Supply, Lane, Atelier, Trading, Brothers, Craft, Collective, Union")
SERIES = words(
    "Aurora, Drift, Harbor, Meadow, Pioneer, Velvet, Summit, Ember, Breeze, Cascade, Willow, Orbit, Prairie, Signal, "
    "Juniper, Atlas, Sienna, Comet, Lagoon, Maple, Quartz, Raven, Saffron, Tundra, Umbra, Vesper, Zephyr, Canyon"
)


CHUNK_ITEMS = 100_000
MIN_ITEMS_OF_A_KIND = 8
MAX_TRAITS = 3
TRAIT_PROBABILITIES = (0.4, 0.4, 0.2)
NUM_TRAITS = len(DEPARTMENTS[0].traits)
SHOWN = {"series": 0.6, "model": 0.2, "use": 0.4, "size": 0.35}
MAX_WORDS = 12
SUCCESSOR_PROBABILITIES = (0.7, 0.3)


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
    """The truth about every item.

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
    lot = np.where(is_first, 1.0, rng.random(num_items))
    is_unsold = lot < config.unsold_share
    is_new = ~is_unsold & (lot < config.unsold_share + config.new_share)
    weights[is_unsold] = 0.0
    # Few brands take most of a department: the square pulls the uniform draw towards its first brands.
    place = (rng.random(num_items) ** 2 * config.brands_per_department).astype(np.int64)
    brands = kinds.departments[of_kind] * config.brands_per_department + place
    return SimulatedItems(of_kind, brands, weights, is_new)


def brand_name(number: int) -> str:
    """A brand's name, different for every number: Norwick, Velmora, ..., then Norwick Works, ..."""
    num_heads, num_tails = len(BRAND_HEADS), len(BRAND_TAILS)
    end, number = divmod(number, num_heads * num_tails)
    turn, place = divmod(number, num_tails)
    # 7 and 11 are prime to the lists' lengths: every pair comes once, and neighbours sound different.
    name = BRAND_HEADS[(turn + 11 * place) % num_heads] + BRAND_TAILS[7 * place % num_tails]
    if end == 0:
        return name
    series, ending = divmod(end - 1, len(BRAND_ENDS))
    return f"{name} {BRAND_ENDS[ending]}" + (f" {series + 1}" if series else "")


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
        "use": [uses[number][lot % len(uses[number])] for number, lot in zip(departments, use, strict=True)],
        "size": [sizes[number][lot % len(sizes[number])] for number, lot in zip(departments, size, strict=True)],
        "series": [SERIES[lot % len(SERIES)] for lot in series],
        "model": [str(100 + 10 * (lot % 90)) for lot in model],
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
