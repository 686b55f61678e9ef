"""The embedded language model: what ships, and whether it can do the two things that it is for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Tokenizer

from allrec.llm.language_model import LanguageModel
from allrec.llm.loading import EMBEDDED, LanguageModelConfig, embedded_folder
from embedded_tasks import Catalogues, Task, batch
from embedded_text import titles
from embedded_wiring import SIZES, Places, Size
from measure_embedded import VECTOR_SCALE, measure
from train_embedded import make_model, practice_loss

PARAMETERS = {"embedded-small": (400_000, 700_000), "embedded-large": (2_000_000, 2_900_000)}
"""At least and at most so many, beside the token tables."""
PROMPT = [0, 1, 15, 259, 700, 701, 702, 3, 1, 13, 259, 900, 901, 902, 3, 1, 285, 259, 900, 901]
"""A beginning, the user's place, two titles between quotes with their vectors' places, and an answer that has begun."""
COPYING = Task((3, 4), (0, 0), 4, (0.9, 1.0), 200, 0.5, (4, 8), 0.0, 0.0, bare_share=0.0)


@pytest.fixture(scope="module", params=EMBEDDED)
def llm(request: pytest.FixtureRequest) -> LanguageModel:
    return LanguageModel.load(LanguageModelConfig(name=request.param))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(embedded_folder("embedded-small") / "tokenizer.json"))


@pytest.mark.parametrize("name", EMBEDDED)
def test_it_is_small_and_holds_no_pickle(name: str) -> None:
    folder = embedded_folder(name)
    files = {path.name for path in folder.iterdir()}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    for table in ("model.embed_tokens.weight", "lm_head.weight"):
        assert weights.pop(table).shape[0] <= 4096
    least, most = PARAMETERS[name]
    assert least < sum(tensor.numel() for tensor in weights.values()) < most


def test_both_together_take_sixteen_megabytes_at_most() -> None:
    sizes = [path.stat().st_size for name in EMBEDDED for path in embedded_folder(name).iterdir()]
    assert sum(sizes) < 16 * 10**6


@pytest.mark.parametrize("name", EMBEDDED)
def test_what_ships_is_what_the_script_makes(name: str, tokenizer: Tokenizer) -> None:
    made = make_model(0, Catalogues(tokenizer, np.random.default_rng([0, 1])), SIZES[name])
    shipped = load_file(embedded_folder(name) / "model.safetensors")
    assert shipped.keys() == made.state_dict().keys()
    for key, tensor in made.state_dict().items():
        assert torch.equal(tensor.to(torch.bfloat16), shipped[key]), key


def test_a_circuit_that_outgrows_its_model_is_refused() -> None:
    with pytest.raises(ValueError, match="takes 201 coordinates, and the model has 200"):
        Places(Size(200, 64, 42, 13, 12))


@given(st.text(max_size=60))
def test_any_title_comes_back_from_its_tokens(tokenizer: Tokenizer, title: str) -> None:
    text = title.encode("utf-8", "ignore").decode()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_it_copies_and_chooses_titles_never_seen(llm: LanguageModel) -> None:
    unseen = titles(np.random.default_rng(123), 400)
    shares = measure(llm, unseen, 40, 0)
    least = {"embedded-small": 0.75, "embedded-large": 0.9}[str(llm.fingerprint["name"])]
    # Three standard errors and more below what docs/experiments.md records.
    assert shares["choose"] > least
    assert shares["copy"] > 0.9


@pytest.fixture(scope="module", params=EMBEDDED)
def attention(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> tuple[torch.Tensor, ...]:
    """Attention over a prompt of two titles, [heads, places, places] a layer; the second title is asked for."""
    catalogues = Catalogues(tokenizer, np.random.default_rng(0), 2)
    model = make_model(0, catalogues, SIZES[request.param])
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
    model = make_model(0, catalogues, SIZES["embedded-small"])
    practice = batch(COPYING, catalogues, model.config.hidden_size, 800, rng)
    losses = practice_loss(model, practice, int(catalogues.open_quote[0]))
    losses["total"].backward()
    assert torch.isfinite(losses["total"])
    assert all(parameter.grad is not None for parameter in model.parameters())
