"""The frozen language model: any causal model of transformers.

The only file that knows transformers. A ``LanguageModel`` is no ``nn.Module``: held by something that is trained, it
is not among its parameters, and no ``.train()`` reaches it.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GenerationConfig, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from allrec.errors import InputError
from allrec.files import quiet_loading
from allrec.llm.adapter import Adapter, LoraConfig, add_adapter, sharing_copy
from allrec.llm.attention import additive_mask
from allrec.llm.checkpointing import is_repeated
from allrec.llm.loading import fingerprint_of, load_model, local_folder
from allrec.llm.model_config import LanguageModelConfig
from allrec.llm.packaged import PACKAGED
from allrec.llm.sharding import is_sharded

UNLIMITED = 1_000_000_000
"""The maximum length, in tokens, of a model that states none."""
CHUNK_ROWS = 8192


class LanguageModel:
    """A frozen causal language model that reads embeddings.

    Args:
        model: a causal model with its head, on its device.
        tokenizer: the model's tokenizer.
        fingerprint: what says which weights these are; see ``fingerprint_of``.

    Attributes:
        begin: token ids that open a text; empty where the model has none.
        end: the id of the end of a sequence, in a list.
        dim: width of the input embeddings, which the layers may widen (OPT-350m).
        hidden_dim: width of the last hidden states.
        vocabulary: number of input embeddings.
        num_tokens: of these, how many the tokenizer has, from the first on.
        max_length: positions that the model has, in tokens.
        adapter: what tunes the model; None where it is as it was published.
        window: so far back every layer looks, in tokens.
        is_sharded: whether the weights lie in parts over a group of workers, which then read at the same time.

    Raises:
        InputError: no end-of-sequence token, a model that looks ahead, or one whose logits we cannot reproduce.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, fingerprint: dict[str, str | None]) -> None:
        self.fingerprint = fingerprint
        self.adapter: Adapter | None = None
        self._model: Any = model.eval().requires_grad_(False)
        self.is_sharded = is_sharded(model)
        self._table = model.get_input_embeddings()
        self._head = model.get_output_embeddings()
        # What a published model says of sampling and penalties is not for us: decoding is plain.
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
        self._tokenizer = tokenizer
        self._ids = plain_encoder(tokenizer)
        self._anchor = anchor_of(self._ids)
        text_config = model.config.get_text_config()
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device
        self.dim = int(self._table.weight.shape[1])
        self.vocabulary = int(self._table.weight.shape[0])
        self.num_tokens = min(self.vocabulary, len(tokenizer))
        self.max_length = int(_first(text_config, "max_position_embeddings", "n_positions", "max_seq_len") or UNLIMITED)
        self.window = int(_first(text_config, "sliding_window", "attention_chunk_size") or UNLIMITED)
        self._scale = float(_first(text_config, "logit_scale") or 1) / float(_first(text_config, "logits_scaling") or 1)
        self._cap = _first(text_config, "final_logit_softcapping")
        self.begin = self._special(tokenizer.bos_token_id)
        self.end = self._special(tokenizer.eos_token_id)
        self.hidden_dim = self._verify()

    @classmethod
    def load(cls, config: LanguageModelConfig, device: torch.device | str = "cpu") -> "LanguageModel":
        """Loads a model by name or path. Foreign code is never run and no pickle is read.

        Raises:
            InputError: it cannot be found or loaded, or it is no causal language model.
        """
        folder = local_folder(config.name)
        try:
            with quiet_loading(folder is not None):
                model, tokenizer = load_model(folder, config, torch.device(device))
            return cls(model, tokenizer, fingerprint_of(config.name, folder, model))
        except InputError:
            raise
        except Exception as error:  # tokenizers raises no narrower one, and a foreign model may raise any
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")
            raise InputError(
                f"language model {config.name} cannot be loaded: {reason}. Give a path, the name of a causal model "
                f"that is within reach, or a packaged one: {', '.join(PACKAGED)}."
            ) from error

    def adapted(self, config: LoraConfig, seed: int) -> "LanguageModel":
        """The same model behind a new adapter, which at first changes nothing; the frozen weights are shared.

        Args:
            config: sizes.
            seed: of the adapter's first weights.

        Raises:
            InputError: peft is not installed, or the model is sharded.
        """
        if self.is_sharded:
            raise InputError(
                "got llm.tuning=lora and a sharded language model, expected one of them. Leave the model as it is: "
                "--set llm.tuning=none; or whole: --set llm.published.is_sharded=false"
            )
        llm = LanguageModel(sharing_copy(self._model), self._tokenizer, self.fingerprint)
        llm.adapter = add_adapter(llm._model, config, seed)
        return llm

    @property
    def identity(self) -> list[Any]:
        """What tells these weights from all others: fingerprint, precision, bits if packed, the adapter's digest."""
        digest = None if self.adapter is None else self.adapter.digest
        packed = [f"{bits}bit" for bits in (8, 4) if getattr(self._model, f"is_loaded_in_{bits}bit", False)]
        return [self.fingerprint, str(self.dtype), *packed, *([] if digest is None else [digest])]

    @property
    def learning(self) -> list[Parameter]:
        """The adapter's weights while they are trained; else none."""
        weights = [] if self.adapter is None else list(self.adapter.parameters())
        return [weight for weight in weights if weight.requires_grad]

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text: no special tokens, and text that looks like one is plain text.

        A text is read as the middle of a longer one: tokenizers that put a space before the first word do not here.
        """
        start = len(self._ids([self._anchor])[0])
        return [row[start:] for row in self._ids([self._anchor + text for text in texts])]

    def decode(self, rows: list[list[int]]) -> list[str]:
        """The text of each row of token ids, without begin and end."""
        if not rows:
            return []  # the tokenizer would take no rows for one that is empty
        texts: list[str] = self._tokenizer.batch_decode(
            rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return texts

    @torch.no_grad()
    def write(
        self,
        embeddings: Float[Tensor, "batch length dim"],
        is_read: Bool[Tensor, "batch length"],
        is_whole: Callable[[Int[Tensor, "rows written"]], Bool[Tensor, "rows"]],
        *,
        k: int,
        max_tokens: int,
    ) -> tuple[Int[Tensor, "batch k written"], Float[Tensor, "batch k written"]]:
        """What the model writes next, without chance: its likeliest token each time, or the k best of a beam of k.

        Args:
            embeddings: what it reads, padded on the left.
            is_read: False where a row is padded.
            is_whole: whether a text is written to its end, from its token ids; the end of sequence ends one too.
            k: width of the beam; 1 is greedy.
            max_tokens: the most that are generated.

        Returns:
            Token ids, best first, and their log-probabilities in nats; meaningless after a text's end.
        """
        # A sum, not a mean over the tokens; greedy decoding warns of it.
        beam = {"num_beams": k, "num_return_sequences": k, "length_penalty": 0.0} if k > 1 else {}
        output = self._model.generate(
            inputs_embeds=embeddings.to(self.dtype), attention_mask=is_read.long(), max_new_tokens=max_tokens,
            do_sample=False, eos_token_id=self.end[0], pad_token_id=self.end[0],
            stopping_criteria=[lambda ids, scores, **_: is_whole(ids)],
            return_dict_in_generate=True, output_scores=True, **beam,
        )  # fmt: skip
        log_probs = self._model.compute_transition_scores(
            output.sequences, output.scores, getattr(output, "beam_indices", None), normalize_logits=True
        )
        shape = (len(embeddings), k, -1)
        return output.sequences.view(shape), log_probs.view(shape)

    def embed(self, ids: Int[Tensor, "*places"]) -> Float[Tensor, "*places dim"]:
        """The model's own embeddings of token ids."""
        embeddings: Tensor = self._table(ids.to(self.device))
        return embeddings

    @cached_property
    def embedding_scale(self) -> float:
        """Root mean square of the input embeddings, as the model reads them."""
        rows = torch.arange(self.vocabulary, device=self.device)
        squares = [self.embed(chunk).double().square().sum().item() for chunk in torch.split(rows, CHUNK_ROWS)]
        return float((sum(squares) / (len(rows) * self.dim)) ** 0.5)

    def hidden(
        self,
        embeddings: Float[Tensor, "batch length dim"],
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "batch length"] | None = None,
        cache: Any = None,
    ) -> Float[Tensor, "batch length hidden_dim"]:
        """Last hidden states, before the head.

        Args:
            embeddings: what is read. Rows may be padded on the right: nothing looks ahead.
            attention_mask: added to the scores; see ``additive_mask``. None means causal.
            position_ids: a place's position; None means 0, 1, 2, ...
            cache: what ``read`` returned, where this goes on from there. It is changed.
        """
        given = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": cache}
        output = self._model.base_model(
            inputs_embeds=embeddings.to(self.dtype),
            use_cache=cache is not None,
            **{key: value for key, value in given.items() if value is not None},
        )
        states: Tensor = output.last_hidden_state
        return states

    @torch.no_grad()
    def pooled(self, rows: Sequence[Sequence[int]], num_layers: int) -> Float[Tensor, "rows hidden_dim"]:
        """Mean state of each text's tokens behind some layer, float32, on the CPU.

        The first token is left out where there are others: all later ones look at it, and its state is so large that it
        would be most of any mean.

        Args:
            rows: token ids of each text, at least one.
            num_layers: layers that are run, at least one; all where the model has fewer.
        """
        states: list[Tensor] = []

        def stop(layer: nn.Module, given: Any, output: Any) -> None:
            states.append(output if isinstance(output, Tensor) else output[0])
            raise _HasAll

        layers = [module for module in self._model.modules() if isinstance(module, GradientCheckpointingLayer)]
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
        handle = layers[min(num_layers, len(layers)) - 1].register_forward_hook(stop)
        try:
            with suppress(_HasAll):
                self.hidden(self.embed(ids))
        finally:
            handle.remove()
        places = torch.arange(ids.shape[1], device=self.device)
        counts = (places < lengths[:, None]) & ((places > 0) | (lengths[:, None] == 1))
        sums = (states[0].float() * counts[:, :, None]).sum(dim=1)
        return (sums / counts.sum(dim=1, keepdim=True)).cpu()

    def read(self, embeddings: Float[Tensor, "batch length dim"], cache: Any = None) -> Any:
        """Keys and values that ``hidden`` can go on from.

        The last layer's are all that is wanted of it, so what it would make of them is left out.

        Args:
            embeddings: what is read, padded on the right.
            cache: what was read before it, of rows that are all as long; it is gone on with, and changed.
        """
        if cache is None:
            cache = _KeysAndValues(config=self._model.config)
        else:
            cache.is_reading = cache.is_behind = True
        with suppress(_HasAll):
            self._model.base_model(inputs_embeds=embeddings.to(self.dtype), use_cache=True, past_key_values=cache)
        cache.is_reading = False
        return cache

    @cached_property
    def num_weights(self) -> int:
        """Parameters of the whole model; of packed ones, which hold several, as many as they hold."""
        return int(self._model.num_parameters())

    def logits(self, hidden: Float[Tensor, "*places hidden_dim"]) -> Float[Tensor, "*places vocabulary"]:
        """Logits of the next token, in float32."""
        logits: Tensor = self._head(hidden).float() * self._scale
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

    @property
    def threads(self) -> int:
        """How many threads may read at one time: one where the model changes as it reads, is compiled or sharded."""
        return torch.get_num_threads() if self.device.type == "cpu" and self._is_steady and not self.is_sharded else 1

    @cached_property
    def _is_steady(self) -> bool:
        modules = list(self._model.modules())
        # Some rotary embeddings go by the longest that was read.
        kinds = [str(getattr(module, "rope_type", "")) for module in modules]
        is_compiled = any(getattr(module, "_compiled_call_impl", None) for module in modules)
        return not is_compiled and not any(name in kind for kind in kinds for name in ("dynamic", "longrope"))

    @cached_property
    @torch.no_grad()
    def can_pack(self) -> bool:
        """Whether several continuations, read at once under a dense mask, come out as each of them alone.

        Tried on a few tokens: padded prompts of three places and two continuations of two. A sharded model never does:
        its layers are whole only while each is read to its end.
        """
        if self.is_sharded:
            return False
        prompt, first, second = (self.embed(self._some_ids(7))[None, part] for part in ([0, 1, 2], [3, 4], [5, 6]))
        alone = torch.cat([self.hidden(torch.cat([prompt, part], 1))[:, 3:] for part in (first, second)], 1)
        own = torch.kron(torch.eye(2), torch.ones(2, 2).tril())
        seen = torch.cat([torch.tensor([1, 1, 1, 0]).expand(len(own), -1), own], 1)
        mask = additive_mask((seen == 1).expand(2, 1, -1, -1).to(self.device), self.dtype)
        positions = torch.tensor([3, 4], device=self.device).repeat(2, 2)
        try:
            cache = self.read(torch.cat([prompt, first[:, :1]], 1).expand(2, -1, -1))
            packed = self.hidden(torch.cat([first, second], 1).repeat(2, 1, 1), mask, positions, cache)
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError):
            return False
        return self._is_close(packed, alone.repeat(2, 1, 1))

    def _special(self, token: int | None) -> list[int]:
        return [token] if token is not None and token < self.vocabulary else []

    def _some_ids(self, count: int) -> Int[Tensor, "count"]:
        return torch.arange(count, device=self.device) % self.vocabulary

    def _is_close(self, got: Tensor, expected: Tensor) -> bool:
        tolerance = 1e-4 if self.dtype == torch.float32 else 5e-2
        return bool((got - expected).abs().max() <= tolerance * expected.abs().max())

    @torch.no_grad()
    def _verify(self) -> int:
        name = self.fingerprint["name"]
        ids = self._some_ids(min(8, self.max_length))
        states = self.hidden(self.embed(ids)[None])
        if not self._is_close(self.hidden(self.embed(ids)[None, :4]), states[:, :4]):
            raise InputError(f"{name} looks ahead: it is no causal language model. Choose another one.")
        expected = self._model(input_ids=ids[None], use_cache=False).logits
        if not self._is_close(self.logits(states), expected.float()):
            raise InputError(f"{name}: its logits are not what its head makes of its states. Choose another one.")
        if not self.end:
            raise InputError(f"{name}: the tokenizer has no end-of-sequence token; an answer could never end.")
        return int(states.shape[-1])


class _HasAll(Exception):
    """What was wanted of a pass through the model is there."""


class _KeysAndValues(DynamicCache):
    """Stops the model that fills it once the last layer's keys and values are there."""

    is_reading = True
    is_behind = False
    """Whether it already has the keys and values of a prefix."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        if is_repeated():
            return key_states, value_states
        updated = self._stored(key_states, value_states, layer_idx)
        if updated is None:
            updated = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self.is_reading and layer_idx == len(self.layers) - 1:
            raise _HasAll
        return updated

    def _stored(self, keys: Tensor, values: Tensor, layer_idx: int) -> tuple[Tensor, Tensor] | None:
        """The first keys and values of a plain layer, kept without a copy; concatenation would copy them."""
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if type(layer) is not DynamicLayer or layer.is_initialized:
            return None
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = (
            part
            if part.untyped_storage().nbytes() <= part.nbytes
            else part.clone(memory_format=torch.contiguous_format)
            for part in (keys, values)
        )
        return layer.keys, layer.values


def plain_encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """Texts to ids, by the tokenizer's model without its added tokens.

    ``split_special_tokens`` would leave the added tokens that are not called special, such as ``<think>``.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        given = {"add_special_tokens": False, "split_special_tokens": True}
        return lambda texts: [tokenizer.encode(text, **given) for text in texts]
    state = json.loads(backend.to_str()) | {"added_tokens": [], "truncation": None, "padding": None}
    plain = Tokenizer.from_str(json.dumps(state))
    return lambda texts: [encoding.ids for encoding in plain.encode_batch(texts, add_special_tokens=False)]


def anchor_of(ids: Callable[[list[str]], list[list[int]]]) -> str:
    """What to put before a text and cut away again, for a tokenizer that begins every text with a space (Llama 2)."""
    both, anchor, comma = ids(["\n,", "\n", ","])
    return "\n" if both != anchor + comma and both[: len(anchor)] == anchor else ""


def _first(config: Any, *names: str) -> Any:
    return next((getattr(config, name) for name in names if getattr(config, name, None) is not None), None)
