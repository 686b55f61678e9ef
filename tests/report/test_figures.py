"""What figures show, by arithmetic, and that they draw nothing of nothing."""

from dataclasses import replace

import numpy as np
import pytest

from allrec.report.figures import (
    COLOURS,
    HATCHES,
    LINES,
    MARKERS,
    Seen,
    Series,
    bar_style,
    by_popularity,
    calibration,
    data_uri,
    fusion_losses,
    house_style,
    item_map,
    line_style,
    losses,
    principal_plane,
    reliability,
    segment_bars,
    stage_times,
)
from allrec.report.view import Confidence, Joint, RunView, stored_scores


def result(segment, value):
    return {"segment": segment, "users": 10, "HR@1": value, "ci95": {"HR@1": [value - 0.1, value + 0.1]}}


def test_bars_stand_at_their_values_with_their_intervals():
    series = [Series("llm", [result("all", 0.4), result("cold", 0.2)]), Series("cf", [result("all", 0.3)])]
    axes = segment_bars(series, 0.05).axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0.4, 0.2, 0.3]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["all\nn=10", "cold\nn=10"]
    assert "share" in axes.get_ylabel()


def test_the_hit_rate_stands_over_how_often_targets_were_seen():
    # Six targets that nobody had seen, one of them found; six seen thrice, half of them found.
    ranks = np.array([0, 1, 1, 1, 1, 1, 0, 0, 0, 2, 2, 2])
    axes = by_popularity([Seen("llm", ranks, np.array([0] * 6 + [3] * 6))], None).axes[0]
    where, means = axes.lines[0].get_data()
    assert where.tolist() == [0, 3]
    assert means == pytest.approx([1 / 6, 1 / 2])
    assert [text.get_text() for text in axes.get_xticklabels()][3] == "3–5\nn=6"


def test_equal_users_have_a_wider_interval():
    ranks, counts = np.array([0, 1] * 20), np.zeros(40, int)

    def widths(clusters):
        axes = by_popularity([Seen("llm", ranks, counts, clusters)], None).axes[0]
        low, high = axes.collections[0].get_segments()[0][:, 1]
        return high - low

    assert widths(np.arange(40) % 8) > 1.5 * widths(None)


def test_a_bucket_of_few_users_is_no_point():
    axes = by_popularity([Seen("llm", np.zeros(9, int), np.array([0] * 6 + [200] * 3))], None).axes[0]
    assert axes.lines[0].get_data()[0].tolist() == [0]


def test_nobody_in_any_bucket_draws_nothing():
    assert by_popularity([Seen("llm", np.zeros(2, int), np.array([0, 1]))], 0.05) is None


def test_calibration_is_shares_of_hits_in_bins_of_equal_size():
    confidence = Confidence(np.array([0.9, 0.1, 0.8, 0.2]), np.array([True, False, False, False]))
    means, rates, error = reliability(confidence, bins=2)
    assert (means.tolist(), rates.tolist()) == (pytest.approx([0.15, 0.85]), [0.0, 0.5])
    assert error == pytest.approx(0.5 * 0.15 + 0.5 * 0.35)
    assert calibration({"llm": confidence}) is not None


def test_stages_are_stacked_in_seconds():
    axes = stage_times([("a", {"backbone": 3.0, "text": 1.0}), ("b", {"backbone": 2.0, "text": 0.0})]).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [3.0, 2.0, 1.0, 0.0]
    assert [bar.get_x() for bar in axes.patches][2:] == [3.0, 2.0]
    assert axes.get_xlabel() == "seconds"


def view_with(curves, reports):
    return RunView("a", None, None, None, reports, curves, None, None, None)


def test_every_stage_has_its_losses_and_a_warm_up_its_curve():
    report = {"losses": [3.0, 2.0], "steps": 20, "validations": [0.1, 0.2]}
    curves = {
        "warm_up/total": [(10, 5.0), (20, 4.0)],
        "backbone/total": [(10, 3.0)],
        "backbone/validation": [(10, 0.1)],
    }
    view = view_with(
        curves, {"language_model": report | {"validations": []}, "backbone": report, "idle": {"losses": []}}
    )
    assert view.trained() == ["backbone", "warm_up", "language_model"]
    panels = {axes.get_title(loc="left"): axes for axes in losses(view).axes}
    assert panels["Stage 2, warm-up"].lines[0].get_data()[1].tolist() == [5.0, 4.0]
    assert panels["Stage 2, soft tokens"].lines[0].get_data()[0].tolist() == [10.0, 20.0]
    assert panels["Backbone"].get_ylabel() == "loss, nats"


@pytest.mark.parametrize(("number", "shape"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3))])
def test_panels_of_losses_stand_in_rows(number, shape):
    curves = {f"stage{place}/total": [(1, 1.0)] for place in range(number)}
    grid = losses(view_with(curves, {})).axes[0].get_gridspec()
    assert (grid.nrows, grid.ncols) == shape


def test_each_member_of_each_fusion_has_its_two_curves():
    report = {"losses": [2.0, 1.0], "validations": [-2.5, -1.5]}
    view = replace(view_with({}, {}), fits={"lists": [report, report], "catalogue-llm": [report]})
    first, second = fusion_losses(view).axes
    assert (len(first.lines), len(second.lines)) == (4, 2)
    assert first.lines[1].get_data()[1].tolist() == [2.5, 1.5]
    assert second.get_title(loc="left") == "Whole catalogue, added by the language model"


def test_shares_begin_at_nought_even_where_all_are_nought():
    axes = segment_bars([Series("llm", [result("all", 0.0) | {"ci95": {"HR@1": [0.0, 0.0]}}])], None).axes[0]
    assert axes.get_ylim()[0] == 0


def test_nothing_draws_nothing():
    assert losses(view_with({}, {})) is None
    assert fusion_losses(view_with({}, {})) is None
    assert segment_bars([Series("llm", [])], None) is None
    assert calibration({}) is None
    assert stage_times([]) is None
    few = Joint(np.zeros((2, 3)), np.zeros((2, 3)), np.ones(2, bool), np.ones(2, int))
    assert item_map(few, None) is None


def test_the_plane_keeps_the_two_widest_directions():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(400, 5)) * [10, 5, 0.1, 0.1, 0.1]
    plane = principal_plane(wide[:200], wide[200:])
    assert plane.shares == pytest.approx([0.8, 0.2], abs=0.03)
    centred = np.concatenate([half - half.mean(0) for half in (wide[:200], wide[200:])])
    assert np.abs(np.concatenate([plane.items, plane.texts])[:, 0]) == pytest.approx(np.abs(centred[:, 0]), abs=0.5)


def test_an_offset_of_one_space_moves_nothing_on_the_plane():
    rng = np.random.default_rng(2)
    items, texts = rng.normal(size=(2, 50, 4))
    plane, moved = principal_plane(items, texts), principal_plane(items, texts + np.array([100, 0, 0, 0]))
    assert moved.texts == pytest.approx(plane.texts)


def test_the_map_joins_the_two_embeddings_of_an_item():
    rng = np.random.default_rng(1)
    joint = Joint(rng.normal(size=(40, 4)), rng.normal(size=(40, 4)), np.ones(40, bool), np.ones(40, int))
    plane = principal_plane(joint.items, joint.texts)
    axes = item_map(joint, ["x", "y"] * 20).axes[0]
    pairs = [np.array(line.get_data()).T for line in axes.lines if len(line.get_data()[0]) == 2]
    assert len(pairs) == 30
    for start, end in pairs:
        item = np.abs(plane.items - start).sum(1).argmin()
        assert plane.items[item] == pytest.approx(start)
        assert plane.texts[item] == pytest.approx(end)


@pytest.mark.parametrize("looks", [COLOURS, LINES, MARKERS, HATCHES])
def test_no_two_looks_are_the_same(looks):
    assert len(set(looks)) == len(looks) == 8


def test_series_are_told_apart_without_colour():
    assert len({(line_style(n)["linestyle"], line_style(n)["marker"]) for n in range(8)}) == 8
    assert len({bar_style(n)["hatch"] for n in range(8)}) == 8


def test_equal_figures_have_equal_bytes():
    uris = set()
    for _ in range(2):
        with house_style():
            uris.add(data_uri(stage_times([("a$^$ 衣", {"backbone": 3.0})])))
    assert len(uris) == 1


def test_stored_scores_are_joined_in_the_order_of_their_rows(tmp_path, monkeypatch):
    import torch

    from allrec.files import save_tensors

    monkeypatch.setattr("allrec.report.view.USERS_A_CHUNK", 2)
    for place, rows, sha in ((2, 1, "a" * 12), (0, 2, "b" * 12), (0, 1, "c" * 12), (10, 2, "d" * 12)):
        path = tmp_path / f"test-paper-llm-{place}-{sha}.safetensors"
        save_tensors(path, {"scores": torch.full((rows, 4), float(place))})
    assert stored_scores(tmp_path, "test-paper-llm", 3)[:, 0].tolist() == [0, 0, 2]
    assert stored_scores(tmp_path, "test-paper-llm", 4) is None
    assert stored_scores(tmp_path, "test-paper-llm-no-soft", 3) is None
