"""The warm-up of stage 2: its loss is its equation, users find what they chose next, and a kill changes nothing."""

import numpy as np
import pytest
import torch
from tests.killing import Killed, killed_at
from tests.tiny import save_tiny
from tests.training.histories import bytes_of, dataset_of, make_backbone

from allrec.backbones.base import represent_users
from allrec.errors import Wording
from allrec.llm.language_model import LanguageModel
from allrec.llm.loading import LanguageModelConfig
from allrec.llm.prompt import PromptBuilder, PromptConfig
from allrec.llm.soft_token_training import WarmUpConfig, WarmUpMatch, kept_coordinates, title_embeddings, warm_up
from allrec.llm.soft_tokens import SoftTokens
from allrec.training.examples import initialized, training_examples

NUM_ITEMS = 12


def scene():
    """Users of two tastes: even items or odd ones."""
    rng = np.random.default_rng(0)
    histories = [(rng.permutation(NUM_ITEMS // 2)[:5] * 2 + user % 2).tolist() for user in range(60)]
    backbone = make_backbone(NUM_ITEMS)
    backbone.item_table.data[:, 0] = torch.arange(NUM_ITEMS) % 2 * 4.0 - 2
    joint = torch.from_numpy(rng.random((NUM_ITEMS, 10))).float()
    return dataset_of(histories, NUM_ITEMS), backbone, joint


def warmed(config, seed=0, **arguments):
    dataset, backbone, joint = scene()
    soft_tokens = initialized(lambda: SoftTokens(backbone.dim, joint.shape[1], 16), 0, 2)
    examples = training_examples(dataset, "every")
    users = represent_users(backbone, dataset, examples.users, examples.positions)
    warm_up(soft_tokens, dataset, examples, users, joint, 0.3, config, seed=seed, **arguments)
    return soft_tokens


def config_of(epochs=3, **settings):
    return WarmUpConfig(epochs=epochs, learning_rate=1e-2, batch_size=16, **settings)


def test_loss_equals_its_equation():
    soft_tokens = initialized(lambda: SoftTokens(3, 4, 6), 0, 2)
    match, users, items = WarmUpMatch(soft_tokens), torch.randn(5, 3), torch.randn(7, 4)
    targets, is_kept = torch.tensor([0, 6, 2, 2, 1]), torch.tensor([True, True, False, True, False, True])
    asked = soft_tokens.user(users).detach().numpy().astype(np.float64)[:, is_kept.numpy()]
    offered = soft_tokens.item(items).detach().numpy().astype(np.float64)[:, is_kept.numpy()]
    cosines = asked @ offered.T / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(offered, axis=1)
    logits = 10.0 * cosines
    expected = np.mean([np.log(np.exp(row).sum()) - row[target] for row, target in zip(logits, targets, strict=True)])
    assert match.loss(users, items, targets, is_kept).item() == pytest.approx(expected, rel=1e-5)


def cross_entropy(asked, offered, targets, scale=10.0):
    asked, offered = (rows / np.linalg.norm(rows, axis=1)[:, None] for rows in (asked, offered))
    logits = scale * asked @ offered.T
    return np.mean([np.log(np.exp(row).sum()) - row[target] for row, target in zip(logits, targets, strict=True)])


def test_loss_towards_titles_equals_its_equation():
    soft_tokens = initialized(lambda: SoftTokens(3, 4, 6), 0, 2)
    match, users, items, titles = WarmUpMatch(soft_tokens), torch.randn(5, 3), torch.randn(7, 4), torch.randn(7, 6)
    targets, own = torch.tensor([0, 6, 2, 2, 1]), torch.tensor([6, 1])
    both = (soft_tokens.user(users), soft_tokens.item(items))
    user, item = (part.detach().numpy().astype(np.float64) for part in both)
    expected = cross_entropy(user, titles.numpy(), targets) + cross_entropy(item[[6, 1]], titles.numpy(), own)
    assert match.title_loss(users, items, titles, targets, own).item() == pytest.approx(expected, rel=1e-5)


def test_towards_titles_users_point_at_the_next_title_and_items_at_their_own():
    _, backbone, joint = scene()
    titles = torch.randn(NUM_ITEMS, 16, generator=torch.Generator().manual_seed(3))
    titles += 3 * (torch.arange(NUM_ITEMS) % 2)[:, None] * titles[0]
    soft_tokens = warmed(config_of(60, towards="titles"), titles=titles)
    places = torch.nn.functional.normalize(titles, dim=1)
    with torch.no_grad():
        histories = torch.tensor([[0, 2, 4], [1, 3, 5]])
        users = torch.nn.functional.normalize(soft_tokens.user(backbone.encode(histories)), dim=1)
        items = torch.nn.functional.normalize(soft_tokens.item(joint), dim=1)
    assert ((items @ places.T).argmax(1) == torch.arange(NUM_ITEMS)).float().mean() > 0.8
    even, odd = (users @ places.T).view(2, -1, 2).mean(1).unbind(1)
    assert even[0] > odd[0] + 0.1
    assert odd[1] > even[1] + 0.1


def test_a_titles_place_is_the_mean_of_its_own_tokens(tmp_path):
    llm = LanguageModel.load(LanguageModelConfig(name=str(save_tiny(tmp_path))))
    builder = PromptBuilder.of(llm, ["rose soap", None, "oil"], Wording(), PromptConfig())
    table = llm._model.get_input_embeddings().weight.detach()
    means = [table[llm.encode([text])[0]].mean(0) for text in (' "rose soap"', ' "untitled item"', ' "oil"')]
    expected = torch.stack(means) - torch.stack(means).mean(0)
    torch.testing.assert_close(title_embeddings(llm, builder), expected)


def test_users_come_to_lie_near_what_they_choose():
    _, backbone, joint = scene()
    soft_tokens = warmed(config_of(30, kept=0.5))
    with torch.no_grad():
        items = torch.nn.functional.normalize(soft_tokens.item(joint), dim=1)
        histories = torch.tensor([[0, 2, 4], [1, 3, 5]])
        users = torch.nn.functional.normalize(soft_tokens.user(backbone.encode(histories)), dim=1)
    even, odd = (users @ items.T).view(2, -1, 2).mean(1).unbind(1)
    assert even[0] > odd[0] + 0.15
    assert odd[1] > even[1] + 0.15


def test_soft_tokens_end_at_the_size_that_was_asked_for():
    _, _, joint = scene()
    soft_tokens = warmed(config_of(size=0.5))
    assert soft_tokens.item(joint).square().mean().sqrt().item() == pytest.approx(0.5 * 0.3, rel=1e-5)


def test_a_step_compares_its_share_of_the_coordinates_and_another_step_others():
    kept = [kept_coordinates(50, 0.2, 0, 0, index) for index in range(2)]
    assert [int(one.sum()) for one in kept] == [10, 10]
    assert not torch.equal(*kept)
    assert kept_coordinates(4, 0.01, 0, 0, 0).sum() == 1


def test_killed_and_resumed_it_ends_in_the_same_bytes(tmp_path):
    whole = bytes_of(warmed(config_of()))
    with pytest.raises(Killed):
        warmed(config_of(), checkpoint=tmp_path / "c", on_progress=killed_at(7))
    assert bytes_of(warmed(config_of(), checkpoint=tmp_path / "c")) == whole
    assert bytes_of(warmed(config_of(), seed=1)) != whole
