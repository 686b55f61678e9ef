"""A prepared data set in memory: NumPy arrays and lists, loaded from its folder with checksums verified."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from allrec.data.protocols import NUM_NEGATIVES
from allrec.errors import InputError, Wording
from allrec.files import check_sha256, read_json, sha256_text

FORMAT_VERSION = 1
MANIFEST = "dataset.json"
FILES = ("interactions.parquet", "items.parquet", "rejected.jsonl", "splits.parquet", "users.parquet")
SPLITS = ("valid", "test")
GENRE_COLUMNS = ("genres", "genre", "categories", "category")


class StoredLists(Mapping[str, np.ndarray]):
    """Candidates by protocol, each read at first use: few callers need all of them.

    Args:
        protocols: the names.
        read: makes the lists of one.
    """

    def __init__(self, protocols: Iterable[str], read: Callable[[str], np.ndarray]) -> None:
        self._read, self._lists = read, dict.fromkeys(protocols)

    def __getitem__(self, protocol: str) -> np.ndarray:
        lists: np.ndarray | None = self._lists[protocol]
        if lists is None:
            lists = self._lists[protocol] = self._read(protocol)
        return lists

    def __iter__(self) -> Iterator[str]:
        return iter(self._lists)

    def __len__(self) -> int:
        return len(self._lists)


@dataclass(frozen=True)
class Targets:
    """What is to be predicted, one row an evaluated user.

    Attributes:
        users: int32 [rows], ascending.
        positions: int64 [rows], the target's place in the user's sequence; the history is everything before it.
        items: int32 [rows], the targets.
        candidates: protocol -> int32 [rows, candidates], the target once, shuffled, -1 at the end of short rows.
    """

    users: np.ndarray
    positions: np.ndarray
    items: np.ndarray
    candidates: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: np.ndarray) -> "Targets":
        """Some of the rows: those that a mask marks, or positions in the order given."""
        some = StoredLists(self.candidates, partial(_taken, self.candidates, rows))
        return Targets(self.users[rows], self.positions[rows], self.items[rows], some)


def _taken(lists: Mapping[str, np.ndarray], rows: np.ndarray, protocol: str) -> np.ndarray:
    return lists[protocol][rows]


@dataclass(frozen=True)
class Dataset:
    """Interactions, items, a split and its candidates. Users and items are 0-based positions.

    Attributes:
        name: the data set's name.
        path: its folder.
        user_ids: the source's id of every user.
        item_ids: the source's id of every item.
        titles: cleaned titles; None where an item has none.
        texts: what a text encoder reads, title and description joined; None where an item has neither.
        offsets: int64 [users + 1], where every user's interactions begin in ``items``.
        items: int32 [interactions], oldest first within a user.
        train_lengths: int64 [users], how many of a user's first interactions are training data.
        targets: "valid" and "test".
        wording: how a prompt speaks of the items.
        sha256: of the files' hashes; equal data sets have equal ones.
        counts: users, items, interactions, evaluated users and more, as in dataset.json.
        seconds: how long preparing it took; 0 where that is not known.
        genres: of every item; None where the source has no such column.
        scenario: "standard", or how the data set as it was prepared was changed (``experiments/scenarios.py``).
    """

    name: str
    path: Path
    user_ids: list[str]
    item_ids: list[str]
    titles: list[str | None]
    texts: list[str | None]
    offsets: np.ndarray
    items: np.ndarray
    train_lengths: np.ndarray
    targets: dict[str, Targets]
    wording: Wording
    sha256: str
    counts: dict[str, int]
    seconds: float = 0.0
    genres: list[list[str]] | None = None
    scenario: str = "standard"

    @property
    def num_users(self) -> int:
        """How many users there are, those too short to be evaluated included."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """How many items the catalogue has, those without an interaction included."""
        return len(self.item_ids)

    @property
    def num_interactions(self) -> int:
        """How many interactions there are, repeats included."""
        return len(self.items)

    def history(self, user: int) -> np.ndarray:
        """All items of a user, int32, oldest first, of every split."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def train_history(self, user: int) -> np.ndarray:
        """The training items of a user, int32, oldest first."""
        return self.history(user)[: self.train_lengths[user]]

    def train_csr(self) -> tuple[np.ndarray, np.ndarray]:
        """Training interactions: offsets int64 [users + 1] and items int32 [training interactions]."""
        offsets = np.concatenate([[0], np.cumsum(self.train_lengths)])
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1] - offsets[:-1], self.train_lengths)
        return offsets, self.items[places]

    def train_counts(self) -> np.ndarray:
        """How often every item occurs in training, int64 [items]."""
        return np.bincount(self.train_csr()[1], minlength=self.num_items)


class Tables(NamedTuple):
    """What a data set's Parquet files hold.

    Attributes:
        interactions: user and item, sorted by user and order; further columns are ignored.
        items: item_id, title, text, further columns.
        users: user_id, num_train.
        targets: of ``splits.parquet``, by split.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    targets: dict[str, Targets]


def load_dataset(path: Path | str) -> Dataset:
    """Loads a data set folder that ``prepare`` wrote.

    Args:
        path: the folder.

    Raises:
        InputError: no data set there, one of another format version, or a damaged file.
    """
    path = Path(path)
    manifest = read_manifest(path)
    for name, sha256 in manifest["files"].items():
        check_sha256(path / name, sha256)
    tables = Tables(
        pl.read_parquet(path / "interactions.parquet", columns=["user", "item"], glob=False),
        pl.read_parquet(path / "items.parquet", glob=False),
        pl.read_parquet(path / "users.parquet", glob=False),
        {split: read_targets(path / "splits.parquet", split) for split in SPLITS},
    )
    return assemble(path, manifest, tables)


def assemble(path: Path, manifest: Mapping[str, Any], tables: Tables) -> Dataset:
    """The data set that lies in ``path``, of its manifest and what its files hold."""
    items, users = tables.items, tables.users
    lengths = np.bincount(tables.interactions["user"].to_numpy(), minlength=len(users))
    return Dataset(
        name=manifest["name"],
        path=path,
        user_ids=users["user_id"].to_list(),
        item_ids=items["item_id"].to_list(),
        titles=items["title"].to_list(),
        texts=items["text"].to_list(),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        items=to_array(tables.interactions["item"]),
        train_lengths=to_array(users["num_train"]),
        targets=tables.targets,
        wording=Wording(**manifest["wording"]),
        sha256=combine_hashes(manifest["files"]),
        counts=manifest["counts"],
        seconds=float(manifest.get("seconds", 0.0)),
        genres=genres_of(items),
    )


def flat(starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slices ``[start, end)``, one a row, concatenated: the row and the position of each element."""
    lengths = ends - starts
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return rows, np.arange(len(rows)) + np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)


def load_timestamps(dataset: Dataset) -> np.ndarray:
    """When each interaction of a data set happened, int64 [interactions], UTC seconds, in the order of its items.

    Raises:
        InputError: the source had no times.
    """
    path = dataset.path / "interactions.parquet"
    if "timestamp" not in pl.read_parquet_schema(path):
        raise InputError(
            f"{dataset.name} has no timestamps, so it cannot be split by time. Prepare a source with times."
        )
    return to_array(pl.read_parquet(path, columns=["timestamp"], glob=False)["timestamp"].cast(pl.Int64))


def genres_of(items: pl.DataFrame) -> list[list[str]] | None:
    """The genres of every item: a column of lists, or of strings with ``|`` between genres; an item may have none."""
    name = next((name for name in GENRE_COLUMNS if name in items.columns), None)
    if name is None:
        return None
    column = items[name]
    if not isinstance(column.dtype, pl.List):
        column = column.cast(pl.String).str.split("|")
    return [[genre.strip() for genre in genres or [] if genre and genre.strip()] for genres in column.to_list()]


def is_dataset(path: Path) -> bool:
    """Whether a folder is a data set, of any version, whole or damaged."""
    return (path / MANIFEST).is_file() and (path / "interactions.parquet").is_file()


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads ``dataset.json``.

    Raises:
        InputError: the folder is no data set, or one of another format version.
    """
    if not (path / MANIFEST).is_file():
        raise InputError(
            f"{path} is no data set folder: it holds no {MANIFEST}. Make one: allrec prepare SOURCE --out {path}"
        )
    manifest = read_json(path / MANIFEST)
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {version}, expected {FORMAT_VERSION}. Prepare it again from its source."
        )
    missing = {"name", "files", "wording", "counts"} - set(manifest)
    if missing or set(manifest["files"]) != set(FILES):
        raise InputError(f"{path / MANIFEST} is damaged: it does not name what a data set has. Prepare it again.")
    return dict(manifest)


def read_targets(path: Path, split: str) -> Targets:
    """Reads the targets of one split from ``splits.parquet``; their candidates are read at first use."""
    rows = pl.scan_parquet(path, glob=False).filter(pl.col("split") == split)
    user, position, item = (to_array(column) for column in rows.select("user", "position", "item").collect())
    lists = StoredLists(NUM_NEGATIVES, partial(read_lists, path.absolute(), split, version_of(path)))
    return Targets(user, position, item, lists)


def read_lists(path: Path, split: str, version: tuple[int, ...], protocol: str) -> np.ndarray:
    """Reads the candidates of one split and protocol, int32 [rows, candidates].

    Raises:
        InputError: the file is another one than when the data set was loaded.
    """
    if not path.is_file() or version_of(path) != version:
        raise InputError(f"{path} was removed or written anew after the data set was loaded. Load it again.")
    rows = pl.scan_parquet(path, glob=False).filter(pl.col("split") == split).select(protocol).collect()
    flat_lists = to_array(rows[protocol].explode(empty_as_null=False))
    return flat_lists.reshape(len(rows), 1 + NUM_NEGATIVES[protocol])


def version_of(path: Path) -> tuple[int, ...]:
    """What changes when a file is written again: its inode, size and modification time."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def to_array(column: pl.Series) -> np.ndarray:
    """A column as a writable copy, whose memory tensors may share without a warning."""
    return column.to_numpy(writable=True)


def combine_hashes(files: Mapping[str, str]) -> str:
    """One SHA-256 for a whole data set, of its files' names and hashes, sorted by name."""
    return sha256_text("\n".join(f"{name} {sha256}" for name, sha256 in sorted(files.items())))
