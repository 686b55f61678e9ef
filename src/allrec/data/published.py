"""Published data sets: their addresses, checksums and terms, and the options of ``prepare`` for each."""

from dataclasses import dataclass

from allrec.errors import InputError, nearest


@dataclass(frozen=True)
class PublishedFile:
    """One file of a published data set.

    Attributes:
        name: its name on disk.
        addresses: mirrors, the preferred one first; all hold the same bytes.
        sha256: of the file, where one is known; else the first fetch decides, and later ones must agree.
        size: bytes, where known; for display alone.
    """

    name: str
    addresses: tuple[str, ...]
    sha256: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class PublishedSet:
    """A published data set.

    Attributes:
        name: as ``allrec data fetch`` takes it.
        about: what it holds, in a line.
        files: what is fetched; a ``.zip`` is unpacked into the same folder.
        format: as ``allrec prepare --format`` takes it.
        terms: who published it and on what terms.
        options: of ``allrec prepare --set``, where the defaults would not do.
    """

    name: str
    about: str
    files: tuple[PublishedFile, ...]
    format: str
    terms: str
    options: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """Bytes of all files; None where one of them is not known."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None


AMAZON_2018_ROOTS = (
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2",
    "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_v2",
    "https://jmcauley.ucsd.edu/data/amazon_v2",
)
AMAZON_2023_ROOTS = (
    "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw",
    "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_2023/raw",
)
MOVIELENS_ROOT = "https://files.grouplens.org/datasets/movielens"

AMAZON_2018_TERMS = "Ni, Li, McAuley, EMNLP 2019; for research, no formal licence; cseweb.ucsd.edu/~jmcauley/datasets"
AMAZON_2023_TERMS = "Hou et al., arXiv:2403.03952; for research, no formal licence; amazon-reviews-2023.github.io"
MOVIELENS_TERMS = "Harper, Konstan, TiiS 2015; research use, see its README; grouplens.org/datasets/movielens"

# The metadata of 2018 list some products twice.
FIRST_OF_TWO = "duplicate_items=first"
PUBLIC_CODE_FOUR = (
    *("count_filter=one-pass", "min_user_count=4", "min_item_count=4", "min_rating=3"),
    FIRST_OF_TWO,
)
PUBLIC_CODE_FIVE = ("count_filter=one-pass", FIRST_OF_TWO)
"""The filters of A-LLMRec's public code: four interactions rated three or more for Beauty and Toys, else five."""


def amazon_2018(category: str, reviews: str, options: tuple[str, ...]) -> PublishedSet:
    """All reviews of a category of 2018, with its metadata."""
    files = (
        PublishedFile(f"{category}.json.gz", _under(AMAZON_2018_ROOTS, f"categoryFiles/{category}.json.gz")),
        _amazon_2018_metadata(category),
    )
    about = f"Amazon reviews 2018, {plain(category)}: {reviews} reviews, with metadata"
    return PublishedSet(f"amazon-2018-{slug(category)}", about, files, "amazon-2018", AMAZON_2018_TERMS, options)


def amazon_2018_core(category: str, reviews: str) -> PublishedSet:
    """The 5-core of a category of 2018, with the category's metadata."""
    name = f"{category}_5.json.gz"
    files = (
        PublishedFile(name, _under(AMAZON_2018_ROOTS, f"categoryFilesSmall/{name}")),
        _amazon_2018_metadata(category),
    )
    about = f"Amazon reviews 2018, {plain(category)}, 5-core: {reviews} reviews, with metadata"
    own_name = f"amazon-2018-{slug(category)}-5core"
    return PublishedSet(own_name, about, files, "amazon-2018", AMAZON_2018_TERMS, (FIRST_OF_TWO,))


def amazon_2023(category: str, sizes: tuple[int | None, int | None] = (None, None)) -> PublishedSet:
    """All reviews of a category of 2023, with its metadata."""
    reviews, metadata = f"{category}.jsonl.gz", f"meta_{category}.jsonl.gz"
    files = (
        PublishedFile(reviews, _under(AMAZON_2023_ROOTS, f"review_categories/{reviews}"), size=sizes[0]),
        PublishedFile(metadata, _under(AMAZON_2023_ROOTS, f"meta_categories/{metadata}"), size=sizes[1]),
    )
    about = f"Amazon reviews 2023, {plain(category)}, with metadata"
    return PublishedSet(f"amazon-2023-{slug(category)}", about, files, "amazon-2023", AMAZON_2023_TERMS)


def movielens(name: str, ratings: str, size: int, sha256: str) -> PublishedSet:
    """One release of MovieLens; sizes and checksums as TensorFlow Datasets pins them."""
    file = PublishedFile(f"{name}.zip", _under((MOVIELENS_ROOT,), f"{name}.zip"), sha256, size)
    return PublishedSet(name, f"MovieLens: {ratings} ratings, with titles", (file,), "movielens", MOVIELENS_TERMS)


def _amazon_2018_metadata(category: str) -> PublishedFile:
    name = f"meta_{category}.json.gz"
    return PublishedFile(name, _under(AMAZON_2018_ROOTS, f"metaFiles2/{name}"))


def _under(roots: tuple[str, ...], path: str) -> tuple[str, ...]:
    return tuple(f"{root}/{path}" for root in roots)


def plain(category: str) -> str:
    """``Luxury_Beauty`` -> ``Luxury Beauty``."""
    return category.replace("_", " ")


def slug(category: str) -> str:
    """``Luxury_Beauty`` -> ``luxury-beauty``."""
    return category.replace("_", "-").lower()


PUBLISHED = (
    amazon_2018("Luxury_Beauty", "574,628", PUBLIC_CODE_FOUR),
    amazon_2018("All_Beauty", "371,345", PUBLIC_CODE_FOUR),
    amazon_2018("Toys_and_Games", "8,201,231", PUBLIC_CODE_FOUR),
    amazon_2018("Video_Games", "2,565,349", PUBLIC_CODE_FIVE),
    amazon_2018("Movies_and_TV", "8,765,568", PUBLIC_CODE_FIVE),
    amazon_2018_core("Luxury_Beauty", "34,278"),
    amazon_2018_core("All_Beauty", "5,269"),
    amazon_2018_core("Toys_and_Games", "1,828,971"),
    amazon_2018_core("Video_Games", "497,577"),
    amazon_2018_core("Movies_and_TV", "3,410,019"),
    amazon_2023("All_Beauty", (94_441_517, 39_871_253)),
    amazon_2023("Software", (496_076_370, 64_165_835)),
    amazon_2023("Video_Games"),
    amazon_2023("Toys_and_Games"),
    amazon_2023("Movies_and_TV"),
    movielens(
        "ml-latest-small", "100,836", 978_202, "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"
    ),
    movielens("ml-100k", "100,000", 4_924_029, "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"),
    movielens("ml-1m", "1,000,209", 5_917_549, "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"),
    movielens("ml-20m", "20,000,263", 198_702_078, "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3"),
    movielens("ml-25m", "25,000,095", 261_978_986, "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa"),
)


def find_published(name: str) -> PublishedSet:
    """The published data set of that name.

    Raises:
        InputError: there is none; the nearest known one.
    """
    known = {published.name: published for published in PUBLISHED}
    if name not in known:
        raise InputError(f"unknown data set {name!r}: {nearest(name, list(known))}.")
    return known[name]
