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
from measure_embedded import measure
from train_embedded import make_model, practice_loss

FOLDER = Path(str(files("allrec.embedded") / "embedded-small"))
COPYING = Task((3, 4), (0, 0), 4, (0.9, 1.0), 200, 0.5, (4, 8), 0.0, 0.0, 0.0, bare_share=0.0)


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
    table = weights.pop("model.embed_tokens.weight")
    assert table.shape[0] <= 4096
    assert 400_000 < sum(tensor.numel() for tensor in weights.values()) < 700_000


@given(st.text(max_size=60))
def test_any_title_comes_back_from_its_tokens(tokenizer: Tokenizer, title: str) -> None:
    text = title.encode("utf-8", "ignore").decode()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_it_copies_and_chooses_titles_never_seen(llm: LanguageModel) -> None:
    unseen = titles(np.random.default_rng(123), 400)
    shares = measure(llm, unseen, "after", 40, 0)
    # Far below what docs/experiments.md records, far above the chance of 1 / 20.
    assert shares["choose"] > 0.4
    assert shares["copy"] > 0.4


def test_before_any_training_a_head_looks_where_the_present_token_stood(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    catalogues = Catalogues(tokenizer, rng, 2)
    model = make_model(0, catalogues)
    model.set_attn_implementation("eager")
    string = rng.integers(300, tokenizer.get_vocab_size(), size=40)
    tokens = torch.from_numpy(np.concatenate([string, string]))[None]
    with torch.no_grad():
        attention = model(tokens, output_attentions=True).attentions[1][0, 1]
    # At place 40 + i the token of place i stands again; what followed it stands at i + 1.
    behind = attention.diagonal(-39)
    assert behind[2:].mean() > 10 / 80


def test_practice_has_a_finite_loss_with_a_gradient(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(1)
    catalogues = Catalogues(tokenizer, rng, 2)
    model = make_model(0, catalogues)
    practice = batch(COPYING, catalogues, model.config.hidden_size, 800, rng)
    losses = practice_loss(model, practice, int(catalogues.open_quote[0]))
    losses["total"].backward()
    assert torch.isfinite(losses["total"])
    assert all(parameter.grad is not None for parameter in model.parameters())
