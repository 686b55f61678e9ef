"""A run whose weights are not those that it was published with does not serve; the one before it goes on."""

import json
from time import monotonic, sleep

import pytest
import torch
from tests.remedies import advises, refused
from tests.serving.test_app import client_of, good, ids

from allrec.files import FullError, load_tensors, read_json, save_tensors, sha256_file
from allrec.recommender import AllRec
from allrec.runs import self_test
from allrec.runs.run_folder import MANIFEST
from allrec.runs.self_test import ANSWERS, is_same
from allrec.serving.snapshots import load_checked


@pytest.fixture
def other(run, system):
    """A copy of the run, in a folder beside it."""
    folder = run.parent / "self-tested"
    if not folder.exists():
        system.save_pretrained(folder)
    yield folder
    for file in folder.glob(ANSWERS):
        file.unlink()


def exchange_weights(folder):
    """Exchanges a stage's weights for others of their kind, their checksum included."""
    file = folder / "backbone" / "model.safetensors"
    kept = load_tensors(file)
    generator = torch.Generator().manual_seed(1)
    changed = {
        name: torch.randn(value.shape, generator=generator).to(value.dtype) if value.is_floating_point() else value
        for name, value in kept.items()
    }
    save_tensors(file, changed)
    manifest = read_json(folder / MANIFEST)
    manifest["stages"]["backbone"]["sha256"][file.name] = sha256_file(file)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return lambda: (save_tensors(file, kept), _restore(folder, manifest, file))


def _restore(folder, manifest, file):
    manifest["stages"]["backbone"]["sha256"][file.name] = sha256_file(file)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_what_a_run_answers_is_kept_beside_it_and_reproduced(other, system):
    load_checked(str(other), 1)
    kept = read_json(other / ANSWERS)
    assert len(kept["users"]) == self_test.USERS
    for row in kept["users"]:
        found = system.recommend(user=row["user_id"], k=self_test.BEST, use_llm=False)
        assert row["items"] == [one.item_id for one in found]
        assert row["scores"] == pytest.approx([one.score for one in found], rel=1e-4, abs=1e-4)
    load_checked(str(other), 1)
    assert read_json(other / ANSWERS) == kept


def test_exchanged_weights_are_refused_and_the_old_run_goes_on(other, run, tmp_path, system):
    load_checked(str(other), 1)
    put_back = exchange_weights(other)
    try:
        AllRec.from_pretrained(other)  # its checksums are those of the exchanged weights
        with client_of(run, tmp_path) as client:
            before = ids(good(client.post("/v1/recommendations", json={"user_id": system.model.catalogue.user_ids[0]})))
            answer = client.post("/v1/models", json={"run": other.name})
            assert answer.status_code == 400
            assert "does not answer user" in answer.json()["detail"]
            # Published all the same, as by a process that had it before it was changed.
            service = client.app.state.service
            service.store.publish("default", run=str(other))
            end = monotonic() + 60
            while 2 not in service.tenants["default"].failed:
                body = good(client.post("/v1/recommendations", json={"user_id": system.model.catalogue.user_ids[0]}))
                assert (body["model_version"], ids(body)) == (1, before)
                assert monotonic() < end
                sleep(0.05)
            assert good(client.get("/v1/models"))["loaded"] == 1
    finally:
        put_back()


def test_a_run_that_was_changed_on_purpose_serves_without_its_answers(other):
    load_checked(str(other), 1)
    put_back = exchange_weights(other)
    try:
        with refused("Publish another run; or remove {} where this one was changed on purpose.") as caught:
            load_checked(str(other), 1)
        advises(str(caught.value), f"remove {other / ANSWERS} where")
        (other / ANSWERS).unlink()
        load_checked(str(other), 1)
        load_checked(str(other), 2)
    finally:
        put_back()


def test_items_that_were_added_since_are_no_change_of_weights(other, monkeypatch):
    load_checked(str(other), 1)
    kept = read_json(other / ANSWERS)
    fewer = kept | {"num_items": kept["num_items"] - 1, "users": []}
    (other / ANSWERS).write_text(json.dumps(fewer))
    load_checked(str(other), 1)
    assert read_json(other / ANSWERS) == kept


@pytest.mark.parametrize("error", [PermissionError("read-only"), FullError("No space left on device")])
def test_a_folder_that_cannot_be_written_keeps_nothing_and_serves(other, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(self_test, "write_json", refuse)
    assert load_checked(str(other), 1).num_items > 0
    assert not (other / ANSWERS).exists()


@pytest.mark.parametrize(
    ("items", "scores", "expected"),
    [
        (["a", "b", "c"], [3.0, 2.0, 1.0], True),
        (["a", "b", "c"], [3.0005, 2.0, 1.0], True),
        (["a", "b", "c"], [3.1, 2.0, 1.0], False),
        (["b", "a", "c"], [3.0, 2.0, 1.0], False),
        (["a", "b", "d"], [3.0, 2.0, 1.0], True),
        (["d", "b", "c"], [3.0, 2.0, 1.0], False),
        (["a", "b"], [3.0, 2.0], False),
    ],
)
def test_answers_are_the_same_where_only_ties_differ(items, scores, expected):
    then = {"user_id": "u", "items": ["a", "b", "c"], "scores": [3.0, 2.0, 1.0]}
    assert is_same({"user_id": "u", "items": items, "scores": scores}, then) is expected
