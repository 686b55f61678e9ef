"""Fusion: contributions that sum, shapes that never fall, gates that read the context alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from allrec.errors import InputError
from allrec.hybrid.fusion import Fusion, FusionConfig, evidence_scale, within_list

NAMES = ["cf", "text_largest", "in_history", "log_count", "history_length"]
FREE = ("log_count", "history_length")
CONTEXT = ("log_count", "history_length", "in_history")


def make_fusion(seed=0, noise=1.0, **settings):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(500, len(NAMES), generator=generator) * 3 + 1
    config = FusionConfig(**settings)
    fusion = Fusion(NAMES, FREE, CONTEXT, config, evidence_scale(values, config.knots), generator)
    for parameter in fusion.parameters():
        parameter.data += noise * torch.randn(parameter.shape, generator=generator)
    return fusion.eval()


def features(rows=6, candidates=5, seed=1):
    return torch.randn(rows, candidates, len(NAMES), generator=torch.Generator().manual_seed(seed)) * 3


def member_by_hand(member, x):
    """One candidate's contributions in plain NumPy."""
    parameters = {name: value.detach().double().numpy() for name, value in member.named_parameters()}
    knots, free = member.knots.double().numpy(), ~member.is_monotone.numpy()

    def softplus(value):
        return np.log1p(np.exp(value))

    def rising(value):
        return np.where(free.reshape(-1, *[1] * (value.ndim - 1)), value, softplus(value))

    hidden = np.tanh(x[member.context.numpy()] @ parameters["gate_input"] + parameters["gate_bias"])
    gates = softplus(hidden @ parameters["gate_output"] + parameters["gate_offset"])
    shapes = rising(parameters["slopes"]) * x
    for evidence in range(len(x)):
        for piece in range(knots.shape[1] - 1):
            lower, upper = knots[evidence, piece], knots[evidence, piece + 1]
            share = min(max((x[evidence] - lower) / (upper - lower), 0.0), 1.0)
            shapes[evidence] += share * rising(parameters["rises"])[evidence, piece]
    interplay = np.tanh(x @ rising(parameters["interplay_input"]) + parameters["interplay_bias"])
    return np.append(gates * shapes, interplay @ softplus(parameters["interplay_output"]))


def by_hand(fusion, x, members):
    """Contributions of some members' mean, a candidate after the other."""
    standard = ((x - fusion.mean) / fusion.spread).double().numpy()
    each = [[[member_by_hand(one, candidate) for candidate in row] for row in standard] for one in members]
    return np.mean(each, axis=0)


def test_it_equals_its_equation():
    fusion, x = make_fusion(), features(2, 3)
    expected = by_hand(fusion, x, fusion.members)
    np.testing.assert_allclose(fusion.contributions(x).detach(), expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("width", [0, 8])
def test_contributions_sum_to_the_score(width):
    fusion, x = make_fusion(interplay_width=width, members=2), features()
    contributions = fusion.contributions(x)
    assert contributions.shape == (6, 5, len(NAMES) + 1)
    torch.testing.assert_close(contributions.sum(dim=2), fusion.score(x))
    assert width or not contributions[:, :, -1].any()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["cf", "text_largest"]), st.floats(0.01, 20))
def test_more_of_monotone_evidence_never_counts_less(seed, name, more):
    fusion, x = make_fusion(seed), features(seed=seed)
    raised = x.clone()
    raised[:, :, NAMES.index(name)] += more
    # Sums of float32 round; what is asked is that nothing falls.
    assert (fusion.score(raised) >= fusion.score(x) - 1e-4).all()


def test_free_evidence_may_count_either_way():
    name = NAMES.index("log_count")
    changes = []
    for seed in range(20):
        x = features()
        raised = x.clone()
        raised[:, :, name] += 2
        fusion = make_fusion(seed)
        changes.append((fusion.score(raised) - fusion.score(x)).mean().item())
    assert min(changes) < 0 < max(changes)


def test_a_contribution_depends_on_its_evidence_and_the_context_alone():
    fusion, x = make_fusion(), features()
    changed = x.clone()
    changed[:, :, NAMES.index("cf")] += 1
    moved = (fusion.contributions(changed) - fusion.contributions(x)).abs().amax(dim=(0, 1)) > 1e-5
    assert moved.tolist() == [True, False, False, False, False, True]
    changed = x.clone()
    changed[:, :, NAMES.index("log_count")] += 1
    moved = (fusion.contributions(changed) - fusion.contributions(x)).abs().amax(dim=(0, 1)) > 1e-5
    assert moved.all()


def test_a_candidate_is_scored_the_same_in_any_list():
    fusion, x = make_fusion(), features(1, 9)
    torch.testing.assert_close(fusion.score(x[:, 2:5]), fusion.score(x)[:, 2:5])


def test_a_constant_has_a_spread_of_one_and_knots_that_ascend():
    scale = evidence_scale(torch.full((50, 2), 3.0), 4)
    assert scale.mean.tolist() == [3.0, 3.0]
    assert scale.spread.tolist() == [1.0, 1.0]
    assert (scale.knots.diff(dim=1) > 0).all()


def test_the_scale_reads_mean_deviation_and_quantiles():
    values = torch.arange(101.0)[:, None]
    scale = evidence_scale(values, 3)
    deviation = np.sqrt(np.mean((np.arange(101) - 50.0) ** 2))
    assert scale.mean.item() == 50
    np.testing.assert_allclose(scale.spread, [deviation], rtol=1e-5)
    expected = [(2 - 50) / deviation, 1e-3, (98 - 50) / deviation + 2e-3]
    np.testing.assert_allclose(scale.knots[0], expected, rtol=1e-4, atol=1e-6)


def test_padding_takes_no_part_in_the_loss():
    fusion, x = make_fusion(), features(3, 4)
    is_candidate = torch.tensor([[True, True, True, False]] * 3)
    places = torch.tensor([0, 1, 2])
    changed = x.clone()
    changed[:, 3] = 100.0
    expected = torch.nn.functional.cross_entropy(fusion.score(x)[:, :3], places)
    torch.testing.assert_close(fusion.loss(changed, is_candidate, places), expected)


def test_the_loss_is_the_members_mean():
    fusion, x = make_fusion(members=2), features()
    places, all_candidates = torch.zeros(6, dtype=torch.int64), torch.ones(6, 5, dtype=torch.bool)
    losses = [torch.nn.functional.cross_entropy(fusion.score(x, member), places) for member in range(2)]
    torch.testing.assert_close(fusion.loss(x, all_candidates, places), (losses[0] + losses[1]) / 2)


def test_a_row_counts_by_its_weight():
    fusion, x = make_fusion(), features(3, 4)
    all_candidates, places = torch.ones(3, 4, dtype=torch.bool), torch.tensor([0, 1, 2])
    each = [fusion.loss(x[row : row + 1], all_candidates[:1], places[row : row + 1]) for row in range(3)]
    weighted = fusion.loss(x, all_candidates, places, weights=torch.tensor([1.0, 3.0, 0.0]))
    torch.testing.assert_close(weighted, (each[0] + 3 * each[1]) / (1 + 3))


def test_too_few_knots_are_refused():
    with pytest.raises(InputError, match=r"FusionConfig\.knots.*greater than or equal to 2"):
        FusionConfig(knots=1)


@pytest.mark.parametrize("member", [None, 1])
def test_members_together_give_what_each_gives_alone(member):
    fusion, x = make_fusion(members=3), features(7, 11)
    plain = by_hand(fusion, x, fusion.members if member is None else [fusion.members[member]])
    np.testing.assert_allclose(fusion.contributions(x, member).detach(), plain, rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(fusion.score(x, member).detach(), plain.sum(axis=2), rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("num_candidates", [40, 77, 1000, 4080])
def test_equal_evidence_ties_to_the_last_bit(num_candidates):
    fusion = make_fusion(members=4)
    with torch.no_grad():
        scores = fusion.score(features(1, 1).expand(1, num_candidates, -1))
    assert len(scores.unique()) == 1


def test_evidence_is_scaled_by_its_spread_however_small_and_left_where_it_is_constant():
    features = torch.tensor([[0.01, 3.0], [0.03, 3.0], [0.01, 3.0], [0.03, 3.0]])
    scale = evidence_scale(features, 2)
    torch.testing.assert_close(scale.mean, torch.tensor([0.02, 3.0]))
    torch.testing.assert_close(scale.spread, torch.tensor([0.01, 1.0]))
    torch.testing.assert_close(scale.knots[0], torch.tensor([-1.0, 1.001]))


def test_what_is_no_number_and_what_cannot_be_count_0_within_their_list():
    scores = np.array([[np.log(1.0), np.log(3.0), -np.inf], [np.nan, 1.0, 2.0]])
    expected = [[np.log(0.25), np.log(0.75), 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(within_list(scores), expected, rtol=1e-12)
