"""Cheaper ways to hold and run the frozen model: what they may change, and what not."""

import numpy as np
import pytest
import torch
from tests.llm.test_candidate_scoring import about
from tests.tiny import KINDS, save_tiny
from torch import nn

from allrec.llm.language_model import LanguageModel
from allrec.llm.likelihood import answer_loss
from allrec.llm.loading import LanguageModelConfig
from allrec.llm.savings import NF4, RUN, SmallLinear, quicken_norms


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


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_norms_of_fewer_passes_give_what_the_models_own_give(tmp_path, kind):
    norms = [
        module
        for module in load(save_tiny(tmp_path, kind))._model.modules()
        if type(module).__name__.endswith("RMSNorm")
    ]
    assert norms
    for norm in norms:
        norm.weight.copy_(torch.linspace(-1, 2, norm.weight.numel()))
        inputs = torch.randn(2, 3, norm.weight.numel(), requires_grad=True)
        factor = torch.randn(inputs.shape)
        found = norm(inputs)
        (gradient,) = torch.autograd.grad((found * factor).sum(), inputs)
        del norm.forward
        expected = norm(inputs)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad((expected * factor).sum(), inputs)[0])


def test_a_norm_that_is_another_one_is_left_as_it_is(tmp_path):
    class ShiftedRMSNorm(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.weight, self.eps, self.shift = nn.Parameter(torch.ones(4)), 1e-6, shift

        def forward(self, inputs):
            return inputs * (inputs.square().mean(-1, keepdim=True) + self.eps).rsqrt() * (self.weight + self.shift)

    norms = nn.ModuleList([ShiftedRMSNorm(0.0), ShiftedRMSNorm(1.0), nn.RMSNorm(4, 1e-6, elementwise_affine=False)])
    quicken_norms(norms.requires_grad_(False))
    assert ["forward" in norm.__dict__ for norm in norms] == [True, False, False]


@pytest.mark.parametrize(("bits", "levels"), [("8bit", np.linspace(-1, 1, 255)), ("4bit", np.array(NF4))])
def test_a_weight_is_the_nearest_step_times_the_largest_of_its_run(bits, levels):
    torch.manual_seed(0)
    linear = nn.Linear(RUN + 6, 3)
    linear.weight.data[1, :RUN] = 0
    weight = linear.weight.detach().numpy()
    expected = np.empty_like(weight)
    for run in (slice(RUN), slice(RUN, None)):
        scale = np.abs(weight[:, run]).max(1)[:, None, None]
        steps = levels * scale
        nearest = np.abs(steps - weight[:, run, None]).argmin(2)
        expected[:, run] = np.take_along_axis(np.broadcast_to(steps, (3, 1, len(levels))), nearest[:, None], 2)[:, 0]
    small = SmallLinear(linear, bits)
    np.testing.assert_allclose(small.weight().numpy(), expected, atol=1e-6)
    inputs = torch.randn(2, 5, RUN + 6, requires_grad=True)
    torch.testing.assert_close(small(inputs), inputs @ torch.from_numpy(expected).T + linear.bias)
    (gradient,) = torch.autograd.grad(small(inputs).square().sum(), inputs)
    torch.testing.assert_close(gradient, 2 * small(inputs).detach() @ torch.from_numpy(expected))


@pytest.mark.parametrize(("bits", "bytes_a_weight"), [("8bit", 1), ("4bit", 0.5)])
def test_small_weights_take_that_much_memory(bits, bytes_a_weight):
    small = SmallLinear(nn.Linear(8 * RUN, 100, bias=False), bits)
    held = sum(buffer.numel() * buffer.element_size() for buffer in small.buffers())
    scales, levels = 8 * 100 * 4, small.levels.numel() * 4
    assert held == 8 * RUN * 100 * bytes_a_weight + scales + levels


@pytest.mark.parametrize(("bits", "tolerance"), [("8bit", 0.02), ("4bit", 0.3)])
def test_few_bits_a_weight_keep_loss_and_gradient_near(tmp_path, bits, tolerance):
    folder = save_tiny(tmp_path)
    whole, small = load(folder), load(folder, weights=bits)
    assert type(small._head) is nn.Linear
    assert not [module for module in small._model.base_model.modules() if type(module) is nn.Linear]
    (loss, gradient), (expected, reference) = loss_and_gradient(small), loss_and_gradient(whole)
    assert loss.item() != expected.item()
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    assert (gradient - reference).norm() < 4 * tolerance * reference.norm()
