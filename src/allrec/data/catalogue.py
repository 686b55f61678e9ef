"""The part of a data set that a run keeps for serving: items with their training counts, and users' histories."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int
from numpy import ndarray

from allrec.data.dataset import Dataset
from allrec.data.ids import id_of
from allrec.data.items import NewItems
from allrec.errors import InputError, Wording, nearest
from allrec.files import atomic_path


@dataclass(frozen=True)
class Catalogue:
    """Items with ids, titles, texts and training counts; users with ids and whole histories, oldest first.

    ``genres`` is None where the data set has none, or the catalogue was written before genres were kept. The last
    ``num_added`` items were added after training: nothing was trained on them, and their texts embed them.
    """

    item_ids: list[str]
    titles: list[str | None]
    texts: list[str | None]
    train_counts: Int[ndarray, "items"]
    user_ids: list[str]
    offsets: Int[ndarray, "users+1"]
    items: Int[ndarray, "interactions"]
    wording: Wording
    genres: list[list[str]] | None = None
    num_added: int = 0
    _item_of: dict[str, int] = field(init=False, repr=False, compare=False)
    _user_of: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_item_of", {item_id: item for item, item_id in enumerate(self.item_ids)})
        object.__setattr__(self, "_user_of", {user_id: user for user, user_id in enumerate(self.user_ids)})

    @classmethod
    def of(cls, dataset: Dataset) -> "Catalogue":
        """The catalogue of a data set, with every interaction in the histories and only training ones counted."""
        return cls(
            dataset.item_ids, dataset.titles, dataset.texts, dataset.train_counts(),
            dataset.user_ids, dataset.offsets, dataset.items, dataset.wording, dataset.genres,
        )  # fmt: skip

    @property
    def num_items(self) -> int:
        """How many items there are."""
        return len(self.item_ids)

    def extended(self, items: NewItems) -> "Catalogue":
        """The same with new items appended; training counts stay as they are."""
        return replace(
            self,
            item_ids=self.item_ids + items.item_ids,
            titles=self.titles + items.titles,
            texts=self.texts + items.texts,
            train_counts=np.concatenate([self.train_counts, np.zeros(len(items.item_ids), self.train_counts.dtype)]),
            genres=None if self.genres is None else self.genres + items.genres,
            num_added=self.num_added + len(items.item_ids),
        )

    def item(self, item_id: object) -> int:
        """Position of an item; a whole number means its digits.

        Raises:
            InputError: there is no such item, or this is not an id.
        """
        return _look_up(self._item_of, item_id, "item")

    def has_item(self, item_id: str) -> bool:
        """Whether there is such an item."""
        return item_id in self._item_of

    def positions_of(self, item_ids: Sequence[str]) -> list[int | None]:
        """Positions of items, None for those that the catalogue does not have."""
        return [self._item_of.get(item_id) for item_id in item_ids]

    def user_or_none(self, user_id: str) -> int | None:
        """Position of a user; None where there is no such user."""
        return self._user_of.get(user_id)

    def user(self, user_id: object) -> int:
        """Position of a user; a whole number means its digits.

        Raises:
            InputError: there is no such user, or this is not an id.
        """
        return _look_up(self._user_of, user_id, "user")

    def history(self, user: int) -> Int[ndarray, "length"]:
        """All items of a known user, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def save(self, folder: Path) -> None:
        """Writes ``items.parquet`` and ``users.parquet``, each whole or not at all."""
        columns = {"item_id": self.item_ids, "title": self.titles, "text": self.texts}
        schema = dict.fromkeys(columns, pl.String)
        items = pl.DataFrame(columns, schema=schema).with_columns(pl.Series("num_train", self.train_counts))
        if self.genres is not None:
            items = items.with_columns(pl.Series("genres", self.genres, pl.List(pl.String)))
        lengths = np.diff(self.offsets)
        histories = pl.DataFrame({"user": np.repeat(np.arange(len(lengths)), lengths), "history": self.items})
        grouped = histories.group_by("user", maintain_order=True).agg("history")
        users = pl.DataFrame({"user": np.arange(len(lengths)), "user_id": self.user_ids})
        users = users.join(grouped, on="user", how="left", maintain_order="left").drop("user")
        for name, table in (("items", items), ("users", users)):
            with atomic_path(folder / f"{name}.parquet") as temporary:
                table.write_parquet(temporary)

    @classmethod
    def load(cls, folder: Path, wording: Wording, *, has_users: bool = True) -> "Catalogue":
        """Reads what ``save`` wrote: all of it, or the items alone."""
        items = pl.read_parquet(folder / "items.parquet")
        users = pl.read_parquet(folder / "users.parquet", n_rows=None if has_users else 0)
        history = users["history"].fill_null([])
        # polars counts in uint32, which concatenated with int64 would become float.
        lengths = history.list.len().to_numpy().astype(np.int64)
        values = history.explode(empty_as_null=False).to_numpy().astype(np.int32)
        return cls(
            items["item_id"].to_list(), items["title"].to_list(), items["text"].to_list(),
            items["num_train"].to_numpy(writable=True),
            users["user_id"].to_list(), np.concatenate([[0], np.cumsum(lengths)]), values, wording,
            items["genres"].to_list() if "genres" in items.columns else None,
        )  # fmt: skip


def _look_up(positions: dict[str, int], given: object, kind: str) -> int:
    key = given if isinstance(given, str) and given in positions else id_of(given, kind)
    if key not in positions:
        known = nearest(key, list(positions)[:1000]).partition(" known:")[0] if positions else ""
        hint = known if known.startswith("did you mean") else f"there are {len(positions)} {kind}s"
        raise InputError(f"unknown {kind} {key!r}: {hint}. Ids are those of the data set.")
    return positions[key]
