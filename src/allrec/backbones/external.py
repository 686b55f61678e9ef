"""Embeddings of items and users that another library made, as a backbone."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from allrec.backbones.base import StatesBackbone
from allrec.errors import Config, InputError


class ExternalConfig(Config):
    """Files of embeddings, and how a history becomes a user representation."""

    kind: Literal["external"] = Field("external", description="Names this backbone.")
    items: str = Field(min_length=1, description="A .npy file, [items, dim]: item embeddings.")
    item_ids: str | None = Field(
        None,
        description="Their ids, a text file with one a line or a .npy of strings; item_ids.* beside them if unset.",
    )
    users: str | None = Field(None, description="A .npy file, [users, dim]: user embeddings. Without it x_u is a mean.")
    user_ids: str | None = Field(None, description="Their ids, likewise; user_ids.* beside them if unset.")
    max_length: int = Field(50, ge=1, description="Latest items of a history that count.")
    recency: float = Field(
        0.5, gt=0, le=1, description="An item weighs so much of the next one in the second mean of a history."
    )
    penalty: float = Field(
        0.1, gt=0, description="L2 penalty of the fold-in, as a share of the features' mean sum of squares."
    )
    dim: int | None = Field(None, ge=1, description="Width of the embeddings; read from the file.")


class External(StatesBackbone):
    """Given item embeddings, and user representations folded in from histories.

    The other library knows users and has a vector for each; here histories are encoded, those of new users too. So x_u
    is a linear function of two means of the history's item embeddings, one plain and one in which later items weigh
    more. It is fitted by ridge regression onto the given users' vectors, once. Without such vectors x_u is the plain
    mean. An item without an embedding has zeros, and takes no part in a mean.

    Train the other library on the training interactions alone, or validation and test are no test of it. Biases of
    items travel as a further column, against a column of ones for the users.

    Source:
        Folding in by regression is no paper's equation but ours. The second mean is for libraries that mind the order.
    """

    config: ExternalConfig

    def __init__(self, num_items: int, config: ExternalConfig) -> None:
        """Begins with zeros for item embeddings, and the plain mean."""
        if config.dim is None:
            raise ValueError("the width of external embeddings is not known, expected dim as read from their file")
        super().__init__(num_items, config.dim, config.max_length)
        self.config, self.recency = config, config.recency
        self.weight = nn.Parameter(torch.eye(2 * config.dim, config.dim))
        self.bias = nn.Parameter(torch.zeros(config.dim))

    def states(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length dim"]:
        """The state at every place, see ``StatesBackbone``."""
        return self.features(histories) @ self.weight + self.bias

    def features(self, histories: Int[Tensor, "batch length"]) -> Float[Tensor, "batch length features"]:
        """The two means of a history's item embeddings, up to every place."""
        items = functional.embedding(histories.clamp(min=0), self.item_table)
        is_known = (items != 0).any(dim=2, keepdim=True).to(items.dtype)
        places = torch.arange(histories.shape[1], device=histories.device)
        ages = places[:, None] - places
        means = []
        for decay in (1.0, self.recency):
            weights = (decay ** ages.clamp(min=0)).to(items.dtype).tril()
            means.append(weights @ items / (weights @ is_known).clamp(min=torch.finfo(items.dtype).tiny))
        return torch.cat(means, dim=2)

    def fit(self, features: Float[Tensor, "users features"], users: Float[Tensor, "users dim"]) -> None:
        """Fits the fold-in to the given users by ridge regression; the intercept is not penalised."""
        x, y = features.double(), users.double()
        x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
        x, y = x - x_mean, y - y_mean
        squares = x.T @ x
        # Where all histories are alike there is nothing to fit, and any positive penalty gives zeros.
        penalty = self.config.penalty * squares.diagonal().mean().clamp(min=1e-12)
        weight = torch.linalg.solve(squares + penalty * torch.eye(len(squares), dtype=x.dtype), x.T @ y)
        self.weight.data.copy_(weight)
        self.bias.data.copy_(y_mean - x_mean @ weight)


class Matched(NamedTuple):
    """Vectors in the order of a data set.

    Attributes:
        vectors: one for each of the data set's ids; zeros where the file has none.
        is_known: whether it has one.
        num_unknown: vectors of the file whose ids the data set lacks.
    """

    vectors: Float[Tensor, "ids dim"]
    is_known: Bool[Tensor, "ids"]
    num_unknown: int


def read_vectors(path: str, ids_path: str | None, noun: Literal["item", "user"], known: list[str]) -> Matched:
    """Reads the vectors of a file and puts them into the order of ``known``.

    Args:
        path: a .npy file, [vectors, dim].
        ids_path: their ids; where None, ``item_ids.npy``, ``item_ids.txt`` or ``item_ids`` (``user_ids``) beside it.
        noun: what they are vectors of.
        known: the data set's ids.

    Raises:
        InputError: a file is missing, damaged or of another shape, an id stands twice, or none is known.
    """
    vectors = _read_array(Path(path))
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or 0 in vectors.shape:
        raise InputError(
            f"{path} holds {vectors.dtype} of shape {list(vectors.shape)}, expected numbers, one row for each {noun}"
        )
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise InputError(f"{path} has a number in row {row} that is not finite. Was its training broken off?")
    ids_file = Path(ids_path) if ids_path is not None else _beside(Path(path), f"{noun}_ids")
    places = _places(_read_ids(ids_file), ids_file)
    if len(places) != len(vectors):
        raise InputError(f"{ids_file} has {len(places)} ids for the {len(vectors)} rows of {path}, expected one a row")
    rows = torch.tensor([places.get(name, -1) for name in known], dtype=torch.int64)
    is_known = rows >= 0
    if not is_known.any():
        examples = f"{next(iter(places))!r} in the file, {known[0]!r} in the data set"
        raise InputError(f"{ids_file} has no {noun} of the data set: {examples}. Give the ids that were prepared.")
    table = torch.from_numpy(vectors.astype(np.float32))[rows.clamp(min=0)] * is_known[:, None]
    return Matched(table, is_known, len(places) - int(is_known.sum()))


def _beside(path: Path, stem: str) -> Path:
    choices = [path.with_name(stem + ending) for ending in (".npy", ".txt", "")]
    found = next((choice for choice in choices if choice.is_file()), None)
    if found is None:
        raise InputError(f"no ids beside {path}: expected {', '.join(choice.name for choice in choices)}")
    return found


def _read_array(path: Path) -> np.ndarray:
    if not path.is_file():
        raise InputError(f"no such file: {path}. Give the .npy file that numpy.save wrote.")
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is no .npy file of plain numbers or strings: {error}") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} holds several arrays, expected a .npy file of one")
    return array


def _read_ids(path: Path) -> list[str]:
    if path.suffix == ".npy":
        ids = _read_array(path)
        if ids.ndim != 1 or ids.dtype.kind not in "Uiu":
            raise InputError(f"{path} holds {ids.dtype} of shape {list(ids.shape)}, expected a row of strings")
        return [str(name) for name in ids.tolist()]
    if not path.is_file():
        raise InputError(f"no such file: {path}. Give the ids, one a line.")
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text: {error}. Save it as UTF-8.") from None
    return [line.removesuffix("\r") for line in lines]


def _places(ids: list[str], path: Path) -> dict[str, int]:
    places: dict[str, int] = {}
    for place, name in enumerate(ids):
        if places.setdefault(name, place) != place:
            raise InputError(f"{path} has the id {name!r} in rows {places[name]} and {place}, expected each once")
    return places
