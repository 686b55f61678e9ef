"""LoRA adapters: what they change, what they leave frozen, and gradients, against weights put together by hand."""

import pytest
import torch
from tests.llm.test_candidate_scoring import about
from tests.tiny import KINDS, save_tiny
from transformers import AutoModelForCausalLM

from allrec.errors import InputError
from allrec.llm import adapter as adapters
from allrec.llm.adapter import LoraConfig
from allrec.llm.language_model import LanguageModel
from allrec.llm.likelihood import answer_loss, score_candidates
from allrec.llm.loading import LanguageModelConfig
from allrec.llm.score_files import content_name

LORA = LoraConfig(rank=2, alpha=6)


def load(folder, **savings):
    return LanguageModel.load(LanguageModelConfig(name=str(folder), **savings))


def randomized(llm, seed=0):
    """The adapter as if it had learned: its second matrices are no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    for weight in llm.adapter.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    return llm


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("llm"), request.param)


def asked(llm, **options):
    """Two prompts without soft tokens, and an answer to each."""
    builder = about(llm, None, soft_token="none", has_user=False, **options).builder
    return builder.prompts([[0, 3, 1], [7, 7]], [[], []]), builder.answers([2, 6])


def oracle_loss(folder, llm, prompts, answers):
    """Mean loss of the answers' tokens by a plain model of weights W + alpha / r * B A, and A and B by name."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    learned = {name.replace("/", "."): value.detach().clone() for name, value in llm.adapter.state_dict().items()}
    learned = {name: value.requires_grad_() for name, value in learned.items()}
    weights = dict(model.named_parameters())
    for name, left in learned.items():
        if ".lora_A." in name:
            product = learned[name.replace(".lora_A.", ".lora_B.")] @ left
            key = name.replace(".lora_A.default", "")
            weights[key] = weights[key] + LORA.alpha / LORA.rank * product
    losses = []
    for prompt, answer in zip(prompts.tokens, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        logits = torch.func.functional_call(model, weights, (ids,)).logits[0, len(prompt) - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, len(prompt) :], reduction="none"))
    return torch.cat(losses).mean(), learned


def test_a_new_adapter_changes_nothing_and_shares_every_weight(folder):
    llm = load(folder)
    tuned = llm.adapted(LORA, seed=0)
    prompts, answers = asked(llm)
    none = torch.zeros(0, llm.dim)
    # Where a gradient is wanted, processors may choose another kernel, which rounds otherwise.
    with torch.no_grad():
        assert torch.equal(answer_loss(tuned, prompts, answers, none), answer_loss(llm, prompts, answers, none))
    frozen = {value.data_ptr() for value in llm._model.parameters()}
    others = {value.data_ptr() for value in tuned._model.parameters() if not value.requires_grad}
    assert others == frozen
    assert llm.adapter is None
    assert not llm.learning
    # Linear layers of both blocks have one each, the head has none.
    assert not any("head" in name or "embed" in name for name in tuned.adapter.state_dict())
    assert len(tuned.adapter.state_dict()) >= 2 * 2 * 6


def test_loss_and_gradient_are_those_of_dense_weights(folder):
    llm = load(folder)
    tuned = randomized(llm.adapted(LORA, seed=0))
    prompts, answers = asked(llm)
    expected, weights = oracle_loss(folder, tuned, prompts, answers)
    loss = answer_loss(tuned, prompts, answers, torch.zeros(0, llm.dim))
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    assert tuned.learning
    for name, weight in tuned.adapter.named_parameters():
        torch.testing.assert_close(weight.grad, weights[name.replace("/", ".")].grad, rtol=1e-4, atol=1e-6)
    assert all(value.grad is None for value in llm._model.parameters())


def test_soft_tokens_behind_the_text_and_an_adapter_learn_together(folder):
    """With an adapter the text before soft tokens is read with its gradient, which without one is left out."""
    llm = load(folder)
    tuned = randomized(llm.adapted(LORA, seed=0))
    scene = about(tuned, None, soft_token="none", user_place="last", lists_candidates=False)
    answers = scene.builder.answers([2, 6, 3])
    soft = torch.randn(3, llm.dim, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = answer_loss(tuned, scene.prompts, answers, soft)
    loss.backward()
    for values, step in ((soft, 1e-2), (tuned.learning[0], 1e-2)):
        direction = values.grad / values.grad.norm()
        with torch.no_grad():
            values += step * direction
            above = answer_loss(tuned, scene.prompts, answers, soft.detach())
            values -= 2 * step * direction
            below = answer_loss(tuned, scene.prompts, answers, soft.detach())
            values += step * direction
        torch.testing.assert_close((above - below) / (2 * step), values.grad.norm(), rtol=2e-2, atol=1e-4)


def test_checkpointed_layers_of_a_copy_run_the_copy(folder):
    tuned = randomized(load(folder).adapted(LORA, seed=0))
    spared = randomized(load(folder, is_checkpointed=True).adapted(LORA, seed=0))
    prompts, answers = asked(tuned)
    for llm in (tuned, spared):
        answer_loss(llm, prompts, answers, torch.zeros(0, llm.dim)).backward()
    for one, other in zip(tuned.learning, spared.learning, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_first_weights_are_the_seeds(folder):
    llm = load(folder)
    digests = [llm.adapted(LORA, seed).adapter.digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_what_was_learned_is_read_back_and_frozen(folder):
    llm = load(folder)
    tuned, again = randomized(llm.adapted(LORA, 0)), llm.adapted(LORA, 1)
    again.adapter.read(tuned.adapter.state_dict())
    assert again.adapter.digest == tuned.adapter.digest
    assert tuned.learning
    assert not again.learning
    prompts, answers = asked(llm)
    given = (prompts, answers, torch.ones(2, 1, dtype=torch.bool).numpy(), torch.zeros(0, llm.dim))
    assert torch.equal(score_candidates(again, *given), score_candidates(tuned, *given))
    assert not torch.equal(score_candidates(again, *given), score_candidates(llm, *given))


def test_cached_scores_of_two_adapters_never_mix(folder):
    llm = load(folder)
    prompts, answers = asked(llm)
    given = (prompts, answers, torch.ones(2, 1, dtype=torch.bool).numpy())
    models = [llm, randomized(llm.adapted(LORA, 0), 1), randomized(llm.adapted(LORA, 0), 2)]
    assert len({content_name(one, *given) for one in models}) == 3


def test_an_adapter_of_another_rank_is_refused(folder):
    llm = load(folder)
    with pytest.raises(InputError, match="does not fit the language model"):
        llm.adapted(LORA, 0).adapter.read(llm.adapted(LoraConfig(rank=3), 0).adapter.state_dict())


def test_without_peft_its_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'allrec\[lora\]'"):
        adapters.check_lora()
