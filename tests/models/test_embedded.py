"""The embedded language model: what ships, and whether it can do the two things that it is for."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer

from allrec.models.language_model import LanguageModel, LanguageModelConfig
from embedded_tasks import Catalogues, Task, batch
from embedded_text import titles
from measure_embedded import VECTOR_SCALE, measure
from train_embedded import make_model, practice_loss

FOLDER = Path(str(files("allrec.embedded") / "embedded-small"))
PROMPT = [0, 1, 15, 259, 700, 701, 702, 3, 1, 13, 259, 900, 901, 902, 3, 1, 285, 259, 900, 901]
"""A beginning, the user's place, two titles between quotes with their vectors' places, and an answer that has begun."""
COPYING = Task((3, 4), (0, 0), 4, (0.9, 1.0), 200, 0.5, (4, 8), 0.0, 0.0, bare_share=0.0)


@pytest.fixture(scope="module")
def llm() -> LanguageModel:
    return LanguageModel.load(LanguageModelConfig(name="embedded-small"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(FOLDER / "tokenizer.json"))


def test_it_is_small_and_holds_no_pickle() -> None:
    sizes = {path.name: path.stat().st_size for path in FOLDER.iterdir()}
    assert set(sizes) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert sum(sizes.values()) < 16 * 2**20
    weights = load_file(FOLDER / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        assert weights.pop(table).shape[0] <= 4096
    assert 400_000 < sum(tensor.numel() for tensor in weights.values()) < 700_000


@given(st.text(max_size=60))
def test_any_title_comes_back_from_its_tokens(tokenizer: Tokenizer, title: str) -> None:
    text = title.encode("utf-8", "ignore").decode()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_it_copies_and_chooses_titles_never_seen(llm: LanguageModel) -> None:
    unseen = titles(np.random.default_rng(123), 400)
    shares = measure(llm, unseen, 40, 0)
    # Three standard errors below what docs/experiments.md records.
    assert shares["choose"] > 0.75
    assert shares["copy"] > 0.9


@pytest.fixture(scope="module")
def attention(tokenizer: Tokenizer) -> tuple[torch.Tensor, ...]:
    """Attention over a prompt of two titles, [heads, places, places] a layer; the second title is asked for."""
    catalogues = Catalogues(tokenizer, np.random.default_rng(0), 2)
    model = make_model(0, catalogues)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(torch.tensor(PROMPT)[None])
        own = torch.randn(2, embeddings.shape[-1], generator=torch.Generator().manual_seed(1)) * VECTOR_SCALE
        embeddings[0, [1, 8, 15]] = own[[1, 0, 1]]
        return tuple(layer[0] for layer in model(inputs_embeds=embeddings, output_attentions=True).attentions)


def test_the_item_whose_vector_is_the_users_is_chosen(attention: tuple[torch.Tensor, ...]) -> None:
    assert attention[1][0, 17, 1] > 0.9, "the user's vector comes to every token"
    assert attention[1][1, 15, 11] > 0.9, "a title's first token comes to its vector"
    assert attention[2][0, 17, 15] > 0.9, "behind the answer's opening quote, the item is found"


def test_what_followed_earlier_is_copied(attention: tuple[torch.Tensor, ...]) -> None:
    assert attention[3][0, 18, 12] > 0.9
    assert attention[3][0, 19, 13] > 0.9
    assert attention[3][0, 17, 0] > 0.9, "while the first token is chosen nothing is copied"


def test_a_titles_tokens_and_its_vector_share_a_vector_before(attention: tuple[torch.Tensor, ...]) -> None:
    tags = attention[0][2, 11:14].argmax(dim=-1).tolist()
    assert set(tags) in ({1}, {8}), "one vector before, whichever is the loudest"
    assert attention[2][1, 18, 15] > 0.9, "which the answer's tokens get from the item chosen"


def test_practice_has_a_finite_loss_with_a_gradient(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(1)
    catalogues = Catalogues(tokenizer, rng, 2)
    model = make_model(0, catalogues)
    practice = batch(COPYING, catalogues, model.config.hidden_size, 800, rng)
    losses = practice_loss(model, practice, int(catalogues.open_quote[0]))
    losses["total"].backward()
    assert torch.isfinite(losses["total"])
    assert all(parameter.grad is not None for parameter in model.parameters())
