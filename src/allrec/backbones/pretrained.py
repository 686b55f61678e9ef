"""Backbones that were trained elsewhere: embeddings of another library, or a checkpoint of the public SASRec."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from allrec.backbones.base import StatesBackbone, freeze
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.data.dataset import Dataset
from allrec.errors import Config, InputError
from allrec.training.batches import pad_histories
from allrec.training.loop import FitReport

FOLDED_TOGETHER = 1024
"""Histories whose features are computed at one time."""
REMEDY = (
    "Where you trust the file, save the state dict alone with the code that wrote it: torch.save(model.state_dict(), "
    "path), or torch.save(pair[1], path) for a pair of arguments and state dict as A-LLMRec writes."
)


@dataclass(frozen=True)
class PretrainedReport(FitReport):
    """No steps and one validation, of a backbone that was trained elsewhere.

    Attributes:
        counts: items and users that the files lack, and those that the data set lacks.
    """

    counts: dict[str, int]


class Pretrained(NamedTuple):
    """A backbone that was trained elsewhere, and counts of ids that its files or the data set lack."""

    model: StatesBackbone
    counts: dict[str, int]


def is_pretrained(config: Config, checkpoint: str | None) -> bool:
    """Whether the recipe loads a backbone instead of training one."""
    return isinstance(config, ExternalConfig) or checkpoint is not None


def load_pretrained(dataset: Dataset, config: Config, checkpoint: str | None) -> Pretrained | None:
    """The backbone that the recipe loads; None where it trains one."""
    if isinstance(config, ExternalConfig):
        return load_external(dataset, config)
    if isinstance(config, SASRecConfig) and checkpoint is not None:
        return Pretrained(load_checkpoint(checkpoint, dataset, config), {})
    return None


class ExternalConfig(Config):
    """Files of embeddings, and how a history becomes a user representation."""

    kind: Literal["external"] = Field("external", description="Names this backbone.")
    items: str = Field(min_length=1, description="A .npy file, [items, dim]: item embeddings.")
    item_ids: str | None = Field(
        None,
        description="Their ids, a text file with one a line or a .npy of strings; item_ids.* next to them if unset.",
    )
    users: str | None = Field(None, description="A .npy file, [users, dim]: user embeddings. Without it x_u is a mean.")
    user_ids: str | None = Field(None, description="Their ids, likewise; user_ids.* next to them if unset.")
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
        ids_path: their ids; where None, ``item_ids.npy``, ``item_ids.txt`` or ``item_ids`` (``user_ids``) next to it.
        noun: what they are vectors of.
        known: the data set's ids.

    Raises:
        InputError: a file is missing, damaged or of another shape, an id occurs twice, or none is known.
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


def load_external(dataset: Dataset, config: ExternalConfig) -> Pretrained:
    """Reads embeddings that another library made, and fits the fold-in of histories where it gives users too.

    Returns:
        The backbone, and how many items and users the files and the data set do not have in common.

    Raises:
        InputError: see ``read_vectors``; or users and items differ in width, or no user who is known has a history.
    """
    items = read_vectors(config.items, config.item_ids, "item", dataset.item_ids)
    model = External(dataset.num_items, config.changed(dim=items.vectors.shape[1]))
    model.item_table.data.copy_(items.vectors)
    counts = _counts("items", items)
    if config.users is not None:
        users = read_vectors(config.users, config.user_ids, "user", dataset.user_ids)
        counts |= _counts("users", users)
        _fold_in(model, dataset, users, config.users)
    return Pretrained(model, counts)


def _counts(noun: str, matched: Matched) -> dict[str, int]:
    return {f"missing_{noun}": int((~matched.is_known).sum()), f"unknown_{noun}": matched.num_unknown}


def _fold_in(model: External, dataset: Dataset, users: Matched, path: str) -> None:
    if users.vectors.shape[1] != model.dim:
        raise InputError(
            f"{path} has users {users.vectors.shape[1]} wide, the items are {model.dim} wide. A dot product must score."
        )
    features, has_items = _features(model, dataset)
    is_fitted = users.is_known & has_items
    if not is_fitted.any():
        raise InputError(f"no user of {path} has a training interaction with an item that has an embedding")
    model.fit(features[is_fitted], users.vectors[is_fitted])


@torch.no_grad()
def _features(model: External, dataset: Dataset) -> tuple[Float[Tensor, "users features"], Bool[Tensor, "users"]]:
    offsets, items = dataset.train_csr()
    features = torch.zeros(dataset.num_users, 2 * model.dim)
    for first in range(0, dataset.num_users, FOLDED_TOGETHER):
        ends = offsets[first + 1 : first + 1 + FOLDED_TOGETHER]
        starts = offsets[first : first + len(ends)]
        rows = torch.from_numpy(np.flatnonzero(ends > starts))
        histories = pad_histories(items, starts[rows], ends[rows], model.max_length)
        lengths = (histories >= 0).sum(dim=1)
        features[first + rows] = model.features(histories)[torch.arange(len(rows)), lengths - 1]
    return features, (features != 0).any(dim=1)


def load_checkpoint(path: str, dataset: Dataset, config: SASRecConfig) -> SASRec:
    """Imports a public SASRec whose items are those of the data set, in its order.

    Args:
        path: the checkpoint.
        dataset: whose catalogue it must fit.
        config: its heads, norm and padding are taken (the default padding leaves that to the checkpoint); all sizes
            come from the checkpoint.

    Raises:
        InputError: see ``import_sasrec``; or the number of items differs.
    """
    padding = None if config.padding == "unseen" else config.padding
    model = import_sasrec(path, heads=config.heads, norm=config.norm, padding=padding)
    if model.num_items != dataset.num_items:
        raise InputError(
            f"the checkpoint {path} has {model.num_items} items, data set {dataset.name!r} has {dataset.num_items}. "
            "Give one that was trained on this catalogue, its item n + 1 being item n here."
        )
    return model


def import_sasrec(
    path: Path | str,
    *,
    heads: int = 1,
    norm: Literal["query", "pre", "post"] = "query",
    padding: Literal["zeroed", "carried"] | None = None,
) -> SASRec:
    """Turns a public checkpoint into a frozen SASRec that gives the same outputs.

    Items keep their order: item n of the checkpoint, whose ids start at 1, becomes item n - 1.

    Args:
        path: a file that ``torch.save`` wrote, holding a state dict.
        heads: attention heads, which the tensors do not show.
        norm: where layer norms were, which they do not show either: ``query`` in the original and in A-LLMRec; in
            later versions ``pre`` with ``norm_first`` and ``post`` without.
        padding: what became of padding, see ``SASRecConfig``. By default the checkpoint decides: later versions keep a
            position of zeros for padding, and carry it on.

    Raises:
        InputError: no such file, anything in it but tensors, or tensors of another layout.
    """
    tensors = _read_tensors(Path(path))
    try:
        return _translate(tensors, heads, norm, padding)
    except KeyError as error:
        raise InputError(
            f"{path} lacks the tensor {error}, expected the layout of the public SASRec; it holds {_some(tensors)}"
        ) from None
    except (RuntimeError, IndexError) as error:
        raise InputError(f"{path} has tensors of other shapes than the public SASRec: {error}") from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"no such file: {path}. Give the checkpoint that torch.save wrote.")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} holds more than tensors, or is no checkpoint: {reason}. {REMEDY}") from None
    is_state = isinstance(content, dict) and all(isinstance(value, Tensor) for value in content.values())
    if not is_state:
        raise InputError(f"{path} holds a {type(content).__name__}, expected a dict of nothing but tensors. {REMEDY}")
    for name, value in content.items():
        if not value.isfinite().all():
            raise InputError(f"{path} has numbers in {name} that are not finite. Was its training broken off?")
    return {str(name): value.float() for name, value in content.items()}


def _translate(
    tensors: dict[str, Tensor],
    heads: int,
    norm: Literal["query", "pre", "post"],
    padding: Literal["zeroed", "carried"] | None,
) -> SASRec:
    items, positions = tensors["item_emb.weight"], tensors["pos_emb.weight"]
    has_padding_position = not positions[0].any()
    if padding is None:
        padding = "carried" if has_padding_position else "zeroed"
    if padding == "carried" and items[0].any():
        raise InputError("padding can be carried only where the item embedding of padding, row 0, is all zeros")
    positions = positions[1:] if has_padding_position else positions
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("attention_layers.")})
    config = SASRecConfig(
        dim=items.shape[1], blocks=blocks, heads=heads, max_length=len(positions), norm=norm, padding=padding
    )
    state = {"item_table": items[1:], "position_table": positions}
    state |= {f"last_norm.{kind}": tensors[f"last_layernorm.{kind}"] for kind in ("weight", "bias")}
    for block in range(blocks):
        state |= {f"blocks.{block}.{name}": value for name, value in _block(tensors, block).items()}
    model = SASRec(len(items) - 1, config, torch.Generator().manual_seed(0))
    model.load_state_dict(state)
    return freeze(model)


def _block(tensors: dict[str, Tensor], block: int) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for kind in ("weight", "bias"):
        attention, network = f"attention_layers.{block}", f"forward_layers.{block}"
        projections = tensors[f"{attention}.in_proj_{kind}"].chunk(3)
        state |= {f"attention.{name}.{kind}": projections[i] for i, name in enumerate(("query", "key", "value"))}
        state[f"attention.output.{kind}"] = tensors[f"{attention}.out_proj.{kind}"]
        state[f"attention_norm.{kind}"] = tensors[f"attention_layernorms.{block}.{kind}"]
        state[f"network_norm.{kind}"] = tensors[f"forward_layernorms.{block}.{kind}"]
        # A convolution of kernel size 1 is a linear layer with one more axis.
        for ours, theirs in (("network.0", "conv1"), ("network.3", "conv2")):
            value = tensors[f"{network}.{theirs}.{kind}"]
            state[f"{ours}.{kind}"] = value.squeeze(2) if kind == "weight" else value
    return state


def _some(tensors: dict[str, Tensor]) -> str:
    return ", ".join(list(tensors)[:5]) + (", ..." if len(tensors) > 5 else "") if tensors else "none"
