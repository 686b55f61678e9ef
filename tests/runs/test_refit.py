"""Refit: what is trained on again, what is kept, and that rows, segments and a kill are as they should be."""

import numpy as np
import pytest
from tests.killing import Killed
from tests.training.histories import dataset_of

from allrec.data import load_dataset
from allrec.files import read_json, sha256_file
from allrec.recommender import AllRec
from allrec.runs.refit import refit_dataset
from allrec.runs.run_folder import RunFolder, refitted_run
from allrec.serving.page import figures_of
from allrec.serving.snapshots import Served, Snapshot
from worlds import FUSED

SETTINGS = (
    *FUSED,
    "llm.enabled=false",
    "fusion.evidence.ensemble=2",
    'evaluation.protocols=["paper", "full"]',
    # The best epoch may be any of them, and a refit takes no more.
    "backbone.loop.epochs=4",
    "backbone.loop.learning_rate=0.05",
)


@pytest.fixture(scope="module")
def world(small_world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("refit")
    return folder, load_dataset(small_world.dataset), small_world.recipe(*SETTINGS), small_world.cache


def train(world, name, refit, **settings):
    folder, dataset, recipe, cache = world
    recipe = recipe.model_copy(update={"refit": refit})
    return AllRec.train(dataset, run=folder / name, recipe=recipe, cache=cache, **settings)


@pytest.fixture(scope="module")
def plain(world):
    return train(world, "plain", "none")


@pytest.fixture(scope="module")
def refitted(world):
    return train(world, "valid", "valid")


def rows(system, **wanted):
    return [row for row in system.run.metrics()["results"] if wanted.items() <= row.items()]


def files(run):
    return {name: noted["sha256"] for name, noted in run.manifest["stages"].items()}


def test_validation_targets_or_everything_become_training_data():
    dataset = dataset_of([[0, 1, 2, 3, 4], [5, 6], [7, 8, 0]], 9)
    valid, everything = refit_dataset(dataset, "valid"), refit_dataset(dataset, "all")
    assert valid.train_csr()[1].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert everything.train_csr()[1].tolist() == dataset.items.tolist()
    assert dataset.train_csr()[1].tolist() == [0, 1, 2, 5, 6, 7]
    assert (len(valid.targets["valid"]), len(everything.targets["valid"]), len(everything.targets["test"])) == (0, 0, 0)
    np.testing.assert_array_equal(valid.targets["test"].items, dataset.targets["test"].items)
    assert len({dataset.sha256, valid.sha256, everything.sha256}) == 3


def test_parts_are_trained_again_for_the_epochs_that_were_kept_and_fusion_is_kept(refitted):
    run = refitted_run(refitted.run)
    for stage in ("backbone", "content"):
        kept, again = (read_json(one.path / stage / "training.json") for one in (refitted.run, run))
        assert (again["epochs"], again["best_epoch"]) == (kept["best_epoch"] + 1, None)
    outer, inner = files(refitted.run), files(run)
    assert {name: inner[name] == outer[name] for name in inner} == {
        "catalogue": False, "backbone": False, "text": True, "alignment": False, "content": False, "ensemble": False,
        "fusion": True,
    }  # fmt: skip
    counts = [model.catalogue.train_counts.sum() for model in (refitted.measured, refitted.model)]
    evaluated = rows(refitted, split="valid", scorer="cf", segment="all")[0]["users"]
    assert counts[1] - counts[0] == evaluated


def test_rows_without_refit_are_those_of_a_run_without_it(plain, refitted):
    def measured(row):
        return {key: value for key, value in row.items() if key != "seconds"}

    labelled = [row for row in rows(refitted) if row["scorer"].endswith("-refit")]
    others = [row for row in rows(refitted) if not row["scorer"].endswith("-refit")]
    assert [measured(row) for row in others] == [measured(row) for row in rows(plain)]
    assert {(row["split"], row["scorer"]) for row in labelled} == {
        ("test", f"{name}-refit") for name in ("cf", "joint", "text", "fusion")
    }


def test_segments_are_counted_on_the_original_training_split(refitted):
    for protocol in ("paper", "full"):
        own, again = (
            {row["segment"]: row["users"] for row in rows(refitted, split="test", protocol=protocol, scorer=scorer)}
            for scorer in ("fusion", "fusion-refit")
        )
        assert own == again
        assert own["cold5"] < own["all"]


def test_killed_in_the_refit_and_resumed_ends_in_the_same_bytes(world, refitted):
    seen = []

    def kill(stage, share, values):
        if stage == "refit":
            seen.append(share)
            if share > 0.2:
                raise Killed

    with pytest.raises(Killed):
        train(world, "killed", "valid", observer=kill)
    assert not RunFolder.open(world[0] / "killed").is_done("refit")
    resumed = train(world, "killed", "valid", resume=True)
    assert files(refitted_run(resumed.run)) == files(refitted_run(refitted.run))
    assert seen == sorted(seen)


def test_everything_is_served_and_never_evaluated(world, refitted):
    system = train(world, "all", "all")
    assert not [row for row in rows(system) if row["scorer"].endswith("-refit")]
    assert system.model.catalogue.train_counts.sum() == world[1].num_interactions
    again = AllRec.from_pretrained(system.run.path)
    user = world[1].user_ids[0]
    served = [(one.item_id, one.score) for one in again.recommend(user=user, k=5)]
    assert served == [(one.item_id, one.score) for one in AllRec(system.model).recommend(user=user, k=5)]
    assert served != [(one.item_id, one.score) for one in AllRec(refitted.model).recommend(user=user, k=5)]
    weights = "run/backbone/model.safetensors"
    assert sha256_file(system.run.path / "refit" / weights) != sha256_file(refitted.run.path / "refit" / weights)


def test_the_language_model_reads_refitted_parts_with_soft_tokens_of_their_own(small_world, tmp_path):
    recipe = small_world.recipe(*FUSED, 'evaluation.protocols=["paper"]', 'refit="valid"')
    given = {"llm": str(small_world.llm), "cache": small_world.cache}
    system = AllRec.train(small_world.dataset, run=tmp_path / "run", recipe=recipe, **given)
    labelled = {row["scorer"] for row in rows(system) if row["scorer"].endswith("-refit")}
    assert {"llm-refit", "allround-refit"} <= labelled
    inner = refitted_run(system.run)
    assert files(inner)["language_model"] != files(system.run)["language_model"]
    assert system.model.loaded_llm is system.measured.loaded_llm


def test_the_services_page_has_the_figures_of_the_run(refitted):
    snapshot = Snapshot.first(Served.load(str(refitted.run.path), 1))
    assert {"fusion", "fusion-refit"} <= {row["scorer"] for row in figures_of(snapshot)}
