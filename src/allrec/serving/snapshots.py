"""What serves a tenant at one moment: a run, with the items of the store joined, and which items are available."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.data.items import NewItems, clean_text, flatten, join_parts
from allrec.files import FullError
from allrec.runs.add_items import encode_texts, encoder_fingerprint
from allrec.runs.run_folder import RunFolder, refitted_run
from allrec.runs.self_test import check_answers
from allrec.runs.trained_model import TrainedModel
from allrec.serving.expressions import Expressions, Items
from allrec.serving.records import Item

logger = logging.getLogger("allrec.serving")
OWN_FIELDS = ("item_id", "title", "category", "genres", "popularity", "is_cold", "is_new")
"""Fields that every item has, whatever the store knows of it."""


@dataclass(frozen=True)
class Served:
    """A run that serves, and the number under which it was published.

    Attributes:
        model: frozen; refitted where the run is.
        run: the folder as it was published.
        version: of the tenant's publications.
        encoder: fingerprint of the text encoder.
        is_refreshed: whether it was trained from a store's events, too.
    """

    model: TrainedModel
    run: str
    version: int
    encoder: str
    is_refreshed: bool = False

    @classmethod
    def load(cls, run: str, version: int) -> "Served":
        """Reads a run; each file is checked against its checksum.

        Raises:
            InputError: no run there, a stage that is not done, or a damaged file.
        """
        folder = RunFolder.open(run)
        own = refitted_run(folder) or folder
        is_refreshed = refresh_folder(folder.path).is_dir()
        return cls(TrainedModel.load(own), run, version, encoder_fingerprint(own), is_refreshed)

    def encode(self, texts: Sequence[str | None], cache: Any) -> Float[Tensor, "texts text_dim"]:
        """Q of texts, by the run's own encoder."""
        return encode_texts(self.model.run, texts, cache)


def load_checked(run: str, version: int) -> "Snapshot":
    """Reads a run, and sees that it answers some users as it did when it was trained or first published.

    Raises:
        InputError: no run there, a damaged one, or one that answers otherwise.
    """
    served = Served.load(run, version)
    try:
        check_answers(served.model)
    except (OSError, FullError) as error:
        logger.warning("the answers of a run cannot be kept beside it", extra={"run": run, "reason": str(error)})
    return Snapshot.first(served)


def refresh_folder(run: Path) -> Path:
    """Where the data and the report of a refresh stand, beside the run that came of it."""
    return run.with_name(f"{run.name}.refresh")


def behind(known: Sequence[Any], own: Sequence[Any]) -> Sequence[Any]:
    """What comes after a history that ends with the first of a user's events; all of them where it does not."""
    longest = next((m for m in range(min(len(known), len(own)), 0, -1) if [*known[-m:]] == [*own[:m]]), 0)
    return own[longest:]


@dataclass(frozen=True)
class Snapshot:
    """A tenant's catalogue at one version of the store's items; never changed, replaced by the next one.

    Attributes:
        served: the run.
        model: over the run's items, and those that joined behind them.
        added: the store's items that joined.
        items: fields that expressions read.
        expressions: over these fields.
        is_off: hidden or out of stock.
        expires_at: seconds since 1970-01-01 UTC, infinity for items that do not expire.
        known: everything that the store has of items, by id.
        joined_at: the version at which the latest item joined, and the model was made.
    """

    served: Served
    model: TrainedModel
    added: NewItems
    items: Items
    expressions: Expressions
    is_off: Bool[ndarray, "items"]
    expires_at: Float[ndarray, "items"]
    known: Mapping[str, Item]
    joined_at: int = 0

    @property
    def version(self) -> int:
        """Of the store's items."""
        return self.items.version

    @property
    def num_items(self) -> int:
        """How many items there are, available or not."""
        return self.model.catalogue.num_items

    def available(self, now: float) -> Bool[ndarray, "items"]:
        """Which items may be recommended at a time, in seconds since 1970-01-01 UTC."""
        return ~self.is_off & (self.expires_at > now)

    def positions(self, item_ids: Sequence[str]) -> Int[ndarray, "known"]:
        """Positions of the items that the catalogue has, in the same order; others are left out."""
        known = self.model.catalogue.positions_of(item_ids)
        return np.array([item for item in known if item is not None], np.int64)

    @classmethod
    def first(cls, served: Served) -> "Snapshot":
        """The run alone, at version 0 of the store's items."""
        model = served.model
        nothing = NewItems([], [], [], [])
        rows = [own_fields(model, item, None) for item in range(model.catalogue.num_items)]
        items = Items(rows, np.zeros(len(rows), np.int64), 0)
        is_off, expires = np.zeros(len(rows), bool), np.full(len(rows), np.inf)
        return cls(served, model, nothing, items, Expressions(OWN_FIELDS), is_off, expires, {})

    def after(self, version: int, changed: Sequence[Item], cache: Any) -> "Snapshot":
        """The next snapshot, once the store's items have changed; the model is made anew only where texts changed.

        Args:
            version: the store's, after the change.
            changed: every item that changed since this snapshot, as it is now.
            cache: folder of cached text embeddings, for items whose embedding another encoder made.
        """
        known = {**self.known, **{item.item_id: item for item in changed}}
        base = self.served.model.catalogue
        own = [item for item in changed if not base.has_item(item.item_id) and text_of(item.fields) is not None]
        added, model = self.added, self.model
        if any(self._is_text_new(item) for item in own):
            added = joined(added, own)
            model = self.served.model.with_items(added, embeddings_of(self.served, added, known, cache))
        names = {name for item in known.values() for name in item.fields}
        expressions = self.expressions
        if not names <= {*expressions.asked}:
            expressions = Expressions([*OWN_FIELDS, *names])
        places = [item for item in model.catalogue.positions_of([one.item_id for one in changed]) if item is not None]
        return self._with(model, added, expressions, known, places, version)

    def _is_text_new(self, item: Item) -> bool:
        known = self.known.get(item.item_id)
        return known is None or text_of(known.fields) != text_of(item.fields)

    def _with(
        self,
        model: TrainedModel,
        added: NewItems,
        expressions: Expressions,
        known: Mapping[str, Item],
        places: Sequence[int],
        version: int,
    ) -> "Snapshot":
        num_new = model.catalogue.num_items - self.num_items
        rows = [*self.items.fields, *({} for _ in range(num_new))]
        versions = np.pad(self.items.versions, (0, num_new))
        is_off, expires = np.pad(self.is_off, (0, num_new)), np.pad(self.expires_at, (0, num_new))
        for place in places:
            item = known[model.catalogue.item_ids[place]]
            rows[place], versions[place] = own_fields(model, place, item), version
            is_off[place] = item.is_hidden or not item.is_in_stock
            expires[place] = np.inf if item.expires_at is None else item.expires_at
        items, joined_at = Items(rows, versions, version), self.joined_at if model is self.model else version
        return Snapshot(self.served, model, added, items, expressions, is_off, expires, known, joined_at)


def text_of(fields: Mapping[str, Any]) -> str | None:
    """What the text encoder reads of an item: title and description; None where it has neither."""
    return join_parts([clean_text(flatten(fields.get("title"))), clean_text(flatten(fields.get("description")))])


def own_fields(model: TrainedModel, place: int, item: Item | None) -> dict[str, Any]:
    """Fields of an item: the run's own, and before them what the store has."""
    catalogue = model.catalogue
    genres = (catalogue.genres[place] if catalogue.genres is not None else None) or []
    fields: dict[str, Any] = {
        "title": catalogue.titles[place] or "", "genres": genres, "category": genres[0] if genres else "",
        "popularity": int(catalogue.train_counts[place]), "is_cold": bool(model.is_cold[place]),
        "is_new": place >= catalogue.num_items - catalogue.num_added,
    }  # fmt: skip
    return fields | ({} if item is None else item.fields) | {"item_id": catalogue.item_ids[place]}


def joined(added: NewItems, changed: Sequence[Item]) -> NewItems:
    """Items that joined and what changed of them; new ones behind the last, so that none changes its position."""
    rows: dict[str, Any] = {row[0]: row for row in zip(*added, strict=True)}
    for item in changed:
        genres = item.fields.get("genres")
        genres = [str(genre) for genre in genres] if isinstance(genres, list) else []
        category = item.fields.get("category")
        if not genres and isinstance(category, str):
            genres = [category]
        title = clean_text(flatten(item.fields.get("title")))
        rows[item.item_id] = (item.item_id, title, text_of(item.fields), genres)
    ids, titles, texts, genres_of = (list(column) for column in zip(*rows.values(), strict=True))
    return NewItems(ids, titles, texts, genres_of)


def embeddings_of(
    served: Served, added: NewItems, known: Mapping[str, Item], cache: Any
) -> Float[Tensor, "items text_dim"]:
    """Q of the items that joined: as stored, or encoded where another encoder, or none, made what is stored."""
    width = served.model.text_embeddings.shape[1]
    found = torch.zeros(len(added.item_ids), width)
    missing = []
    for row, item_id in enumerate(added.item_ids):
        item = known[item_id]
        if item.embedding is not None and item.encoder == served.encoder and len(item.embedding) == 4 * width:
            found[row] = torch.from_numpy(np.frombuffer(item.embedding, np.float32).copy())
        else:
            missing.append(row)
    if missing:
        found[missing] = served.encode([added.texts[row] for row in missing], cache)
    return found
