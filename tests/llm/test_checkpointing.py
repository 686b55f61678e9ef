"""Cheaper ways to hold and run the frozen model: checkpointed and compiled layers, fewer bits a weight."""

import pytest
import torch
from tests.llm.test_candidate_scoring import about
from tests.tiny import KINDS, save_tiny
from torch import nn

from allrec.errors import InputError
from allrec.llm import loading
from allrec.llm.language_model import LanguageModel
from allrec.llm.likelihood import answer_loss
from allrec.llm.loading import LanguageModelConfig


def load(folder, **savings):
    return LanguageModel.load(LanguageModelConfig(name=str(folder), **savings))


def loss_and_gradient(llm):
    scene = about(llm, None)
    soft = scene.soft.clone().requires_grad_()
    prompts = scene.builder.prompts([[0, 3, 1], [], [7, 7]], [[1, 2, 5, 0], [6, 7], [3, 4]])
    loss = answer_loss(llm, prompts, scene.builder.answers([2, 6, 3]), soft)
    (gradient,) = torch.autograd.grad(loss, soft)
    return loss.detach(), gradient


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed_layers_run_twice_and_change_nothing(tmp_path, kind):
    folder = save_tiny(tmp_path, kind, num_hidden_layers=3)
    plain, spared = load(folder), load(folder, is_checkpointed=True)
    expected = loss_and_gradient(plain)
    torch.testing.assert_close(loss_and_gradient(spared), expected)

    def second_layers_runs(llm):
        runs = []
        layers = [module for module in llm._model.modules() if type(module).__name__.endswith("DecoderLayer")]
        norm = next(module for module in layers[1].modules() if "Norm" in type(module).__name__)
        norm.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
        loss_and_gradient(llm)
        return len(runs)

    # Prompts are read in two parts, their answers behind them; and the prompts once more for the gradient.
    assert (second_layers_runs(plain), second_layers_runs(spared)) == (2 + 2, 2 + 2 + 2)


def test_checkpointed_layers_keep_less_for_the_gradient(tmp_path):
    folder = save_tiny(tmp_path, num_hidden_layers=4)

    def kept(llm):
        sizes = {}

        def pack(tensor):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        embeddings = torch.randn(2, 64, llm.dim, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            cache = llm.read(embeddings)
        del cache
        return sum(sizes.values())

    assert kept(load(folder, is_checkpointed=True)) < kept(load(folder)) / 2


def test_layers_are_compiled_where_that_is_asked_for(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **how: compiled.append((type(module).__name__, how)))
    llm = load(save_tiny(tmp_path), is_compiled=True)
    assert compiled == [("LlamaDecoderLayer", {"dynamic": True})] * 2
    assert llm._model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_fewer_bits_are_refused_on_a_cpu(tmp_path, bits):
    with pytest.raises(InputError, match=f"weights are {bits}, which needs CUDA, and the device is cpu.*weights=whole"):
        load(save_tiny(tmp_path), weights=bits)


def test_fewer_bits_say_what_to_install(monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"bitsandbytes is not installed: pip install 'allrec\[quant\]'"):
        loading._fewer_bits("8bit", torch.device("cuda"))


@pytest.mark.parametrize(("bits", "expected"), [("8bit", (True, False)), ("4bit", (False, True))])
def test_on_cuda_bitsandbytes_holds_the_weights(monkeypatch, bits, expected):
    monkeypatch.setattr(loading, "find_spec", lambda name: name)
    found = loading._fewer_bits(bits, torch.device("cuda"))
    assert (found.load_in_8bit, found.load_in_4bit) == expected
    assert found.bnb_4bit_quant_type == "nf4"
