"""The words that the simulated marketplace's titles and descriptions are composed from."""

from typing import NamedTuple


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
