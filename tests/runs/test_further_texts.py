"""Further text encoders of a run: what they are fitted on, what they give fusion, and that items and a kill fit in."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.killing import Killed

from allrec.config import SECOND, TUNED
from allrec.data import load_dataset
from allrec.data.items import clean_new_items
from allrec.files import load_tensors
from allrec.recommender import AllRec
from allrec.runs.add_items import encode_texts
from allrec.runs.further_texts import encode_further
from allrec.runs.run_folder import RunFolder, refitted_run
from remedies import refused
from worlds import FUSED, further

NAMES = (SECOND, TUNED)


@pytest.fixture(scope="module")
def world(small_world, tmp_path_factory):
    sets = (
        *FUSED,
        "llm.enabled=false",
        'evaluation.protocols=["paper"]',
        "refit=valid",
        *further(small_world.llm),
    )
    dataset = load_dataset(small_world.dataset)
    return tmp_path_factory.mktemp("further"), dataset, small_world.recipe(*sets), small_world.cache


@pytest.fixture(scope="module")
def system(world):
    folder, dataset, recipe, cache = world
    return AllRec.train(dataset, run=folder / "run", recipe=recipe, cache=cache)


def test_each_gives_three_similarities_and_retrieves_nothing(system):
    evidence = system.measured.evidence
    for name in NAMES:
        assert {f"{name}_{pool}" for pool in ("largest", "latest", "mean")} <= set(evidence.names)
    assert not {*NAMES} & {*evidence.searches}
    assert set(evidence.names) == set(system.measured.fused_ranker.fusions["lists"].names)


def test_the_second_encoder_is_whitened_over_the_items_that_were_seen_in_training(world, system):
    _, dataset, _, _ = world
    whitened = load_tensors(system.run.verified_folder(SECOND) / "embeddings.safetensors")["embeddings"].double()
    is_seen = dataset.train_counts() > 0
    assert 32 < is_seen.sum() < dataset.num_items
    covariance = np.cov(whitened[torch.from_numpy(is_seen)].numpy().T, bias=True)
    np.testing.assert_allclose(covariance, np.eye(len(covariance)), atol=0.05)
    assert np.abs(np.cov(whitened.numpy().T, bias=True) - np.eye(len(covariance))).max() > 0.05


def test_the_sentence_encoder_stays_beside_the_tuned_one(system):
    model = system.measured
    tuned, frozen = model.further_texts[TUNED], torch.nn.functional.normalize(model.text_embeddings, dim=1)
    assert tuned.shape == frozen.shape
    assert not torch.allclose(tuned, frozen, atol=1e-3)
    assert torch.equal(model.evidence.spaces["text"].unit, frozen)


def test_the_content_parts_read_all_and_stage_one_reads_the_sentence_encoder_alone(system):
    model = system.measured
    widths = [model.text_embeddings.shape[1], *(one.shape[1] for one in model.further_texts.values())]
    assert model.content_texts.shape[1] == sum(widths) > widths[0]
    for part in model.content_texts.split(widths, dim=1):
        torch.testing.assert_close(part.norm(dim=1), torch.ones(len(part)))
    folder = system.run.verified_folder("content")
    assert load_tensors(folder / "content.safetensors")["content.projection"].shape[0] == sum(widths)
    assert model.alignment.texts.encode(model.text_embeddings).shape[1] == model.joint_items.shape[1]


def test_an_added_item_is_read_as_the_others_were(world, system, tmp_path):
    _, dataset, _, cache = world
    before = {name: table.clone() for name, table in system.model.further_texts.items()}
    system.save_pretrained(tmp_path / "run")
    other = AllRec.from_pretrained(tmp_path / "run")
    rows = [{"item_id": "twin", "title": dataset.texts[4]}, {"item_id": "new", "title": "A kettle nobody has seen"}]
    served = other.model.with_items(
        clean_new_items(rows, {}), encode_texts(other.model.run, [row["title"] for row in rows], cache)
    )
    other.add_items(rows, cache=cache)
    for name in NAMES:
        added = other.model.further_texts[name]
        assert torch.equal(added[:-2], before[name])
        torch.testing.assert_close(added[-2], before[name][4], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(served.further_texts[name], added, rtol=1e-5, atol=1e-6)
        assert added[-1].abs().sum() > 0


def test_texts_without_a_word_have_no_vector(world, system):
    _, _, _, cache = world
    for name, vectors in encode_further(system.run, ["A lamp", None], cache).items():
        assert vectors[0].abs().sum() > 0, name
        assert torch.equal(vectors[1], torch.zeros_like(vectors[1])), name


def test_they_are_made_anew_in_a_refit(system):
    inner = refitted_run(system.run)
    for name in NAMES:
        files = [run.manifest["stages"][name]["sha256"]["embeddings.safetensors"] for run in (system.run, inner)]
        assert files[0] != files[1]


def test_killed_while_it_tunes_and_resumed_the_run_is_the_same(world, system):
    folder, dataset, recipe, cache = world

    def kill(stage, share, values):
        if stage == TUNED and values["step"] == 5:
            raise Killed

    given = {"run": folder / "killed", "recipe": recipe, "cache": cache}
    with pytest.raises(Killed):
        AllRec.train(dataset, **given, observer=kill)
    AllRec.train(dataset, **given, resume=True)
    kept, again = ({name: noted["sha256"] for name, noted in RunFolder.open(path).manifest["stages"].items()
                    if name != "evaluate"} for path in (folder / "run", folder / "killed"))  # fmt: skip
    assert kept == again


def test_equal_texts_are_not_whitened_and_without_a_second_encoder_they_train(world, tmp_path):
    _, dataset, recipe, cache = world
    same, given = replace(dataset, texts=["A lamp"] * dataset.num_items), {"run": tmp_path / "run", "cache": cache}
    with refused("Set second_text.enabled=false."):
        AllRec.train(same, recipe=recipe, **given)
    without = recipe.changed(second_text__enabled=False, refit="none")
    given |= {"run": tmp_path / "other", "is_evaluated": False}
    assert AllRec.train(same, recipe=without, **given).model.further_texts.keys() == {TUNED}
