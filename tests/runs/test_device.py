"""Where a run computes: every stage up to stage 1 is trained on the device that was asked for."""

import pytest
import torch

from allrec import AllRec
from allrec.alignment import text_encoder
from allrec.alignment.text_encoder import TextEncoder
from allrec.errors import InputError
from allrec.runs import add_items, stages
from allrec.runs.trained_model import device_of
from worlds import FUSED, make_world

WITHOUT_LLM = ("llm.enabled=false", *FUSED, "fusion.evidence.ensemble=2", "evaluation.protocols=['paper']")


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Which device each part was trained on in a run on ``cpu:0``, and in what was added to it."""
    folder, asked = tmp_path_factory.mktemp("device"), {}

    def noting(name, call, device_of_call):
        def noted(*given, **named):
            asked.setdefault(name, []).append(str(device_of_call(given, named)))
            return call(*given, **named)

        return noted

    dataset, _, recipe = make_world(folder, WITHOUT_LLM)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLREC_CACHE", str(folder / "cache"))
        for name in ("train_backbone", "train_alignment"):
            patch.setattr(stages, name, noting(name, getattr(stages, name), lambda _, named: named.get("device")))
        load = text_encoder._load
        patch.setattr(text_encoder, "_load", noting("text encoder", load, lambda given, _: given[2]))
        system = AllRec.train(dataset, run=folder / "run", recipe=recipe, device="cpu:0")
        system.add_items([{"item_id": "new", "title": "A kettle that nobody has seen"}])
    return asked


def test_backbone_and_stage_one_are_trained_where_asked(asked):
    # The run's own and the one further training of its ensemble.
    assert asked["train_backbone"] == asked["train_alignment"] == ["cpu:0", "cpu:0"]


def test_texts_are_encoded_where_asked_when_a_run_is_trained_and_when_items_join(asked):
    assert asked["text encoder"] == ["cpu:0", "cpu:0"]


def test_a_tuned_text_encoder_is_tuned_where_asked(tmp_path, monkeypatch):
    dataset, _, recipe = make_world(tmp_path, ("llm.enabled=false", "alignment.tune_text=true"))
    given = []

    class Noted(TextEncoder):
        def __init__(self, config, device="cpu"):
            given.append(str(device))
            super().__init__(config, device)

    monkeypatch.setattr(stages, "TextEncoder", Noted)
    monkeypatch.setattr(add_items, "TextEncoder", Noted)
    monkeypatch.setenv("ALLREC_CACHE", str(tmp_path / "cache"))
    system = AllRec.train(dataset, run=tmp_path / "run", recipe=recipe, device="cpu:0", is_evaluated=False)
    system.add_items([{"item_id": "new", "title": "A kettle that nobody has seen"}])
    assert given == ["cpu:0", "cpu:0"]


def test_no_device_is_the_accelerator_where_there_is_one():
    assert device_of(None) == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(InputError, match=rf"got device '{name}', expected one that torch can use here: .*Try cpu"):
        device_of(name)
