"""A language model's pooled states: against all states of transformers, batch like single, and cached by content."""

import pytest
import torch
from tests.tiny import KINDS, load_tiny, save_tiny

from allrec.errors import InputError
from allrec.llm.language_model import LanguageModel
from allrec.llm.model_config import LanguageModelConfig
from allrec.llm.text_states import SecondTextConfig, pooled_states

TEXTS = ["rose soap", "night cream with velvet and silver", None, "oil", "", "rose soap"]


@pytest.fixture(scope="module", params=KINDS)
def llm(request, tmp_path_factory):
    return load_tiny(tmp_path_factory.mktemp("llm"), request.param)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    name = str(save_tiny(tmp_path_factory.mktemp("llm")))
    return SecondTextConfig(model=LanguageModelConfig(name=name), num_layers=1, max_tokens=8)


def test_it_is_the_mean_of_the_states_behind_the_first_token(llm):
    rows = [[5, 9, 40, 7], [11, 3], [8]]
    got = llm.pooled(rows, 1)
    for row, vector in zip(rows, got, strict=True):
        with torch.no_grad():
            states = llm._model(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[1][0]
        torch.testing.assert_close(vector, states[1:].mean(dim=0) if len(row) > 1 else states[0], rtol=1e-4, atol=1e-5)


def test_another_layer_says_another_thing_and_more_layers_than_there_are_are_all(llm):
    rows = [[5, 9, 40, 7]]
    assert not torch.allclose(llm.pooled(rows, 1), llm.pooled(rows, 2), atol=1e-3)
    assert torch.equal(llm.pooled(rows, 2), llm.pooled(rows, 99))


def test_the_model_reads_on_as_before(llm):
    before = llm.hidden(llm.embed(torch.tensor([[5, 9, 40]])))
    llm.pooled([[5, 9]], 1)
    assert torch.equal(llm.hidden(llm.embed(torch.tensor([[5, 9, 40]]))), before)


def test_texts_are_read_to_the_limit_in_their_order_and_none_is_zeros(config, tmp_path):
    got = pooled_states(TEXTS, config, tmp_path)
    llm = LanguageModel.load(config.model)
    assert torch.equal(got[[2, 4]], torch.zeros(2, llm.hidden_dim))
    for place in (0, 1, 3, 5):
        (ids,) = llm.encode([TEXTS[place]])
        torch.testing.assert_close(got[place], llm.pooled([(llm.begin + ids)[:8]], 1)[0], rtol=1e-4, atol=1e-5)
    assert len(llm.encode([TEXTS[1]])[0]) > 7


def test_what_is_cached_needs_no_model_and_other_settings_share_nothing(config, tmp_path, monkeypatch):
    first = pooled_states(TEXTS, config, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "load", lambda *_: pytest.fail("the model was loaded"))
        assert torch.equal(pooled_states(TEXTS, config, tmp_path), first)
        with pytest.raises(pytest.fail.Exception):
            pooled_states([*TEXTS, "new"], config, tmp_path)
    deeper = pooled_states(TEXTS, config.changed(num_layers=2), tmp_path)
    assert not torch.allclose(deeper, first, atol=1e-3)


def test_no_text_at_all_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="no item has a text"):
        pooled_states([None], config, tmp_path)
