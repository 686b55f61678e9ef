"""The tables of README and docs/results.md are what docs/results/ says; its runs are those of scripts/results.toml."""

import json

import pytest
from tests.worlds import FUSED

import results
from allrec.config import dump_recipe
from allrec.evaluation.significance import Comparison, Interval
from allrec.experiments.compare import RUNS
from allrec.files import read_json

ENTRIES = results.entries()


@pytest.mark.parametrize("document", results.DOCUMENTS, ids=lambda path: path.name)
def test_the_tables_of_a_document_are_those_of_the_files(document):
    text = document.read_text(encoding="utf-8")
    assert results.filled(text) == text, "make results, or scripts/results.py write"


def test_a_table_that_was_changed_by_hand_is_found():
    text = (results.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    changed = text.replace("<!-- end of table -->", "| .999 |\n<!-- end of table -->", 1)
    assert changed != text
    assert results.filled(changed) == text


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_is_one_that_can_be_run(name):
    entry = ENTRIES[name]
    if entry.get("baselines"):
        assert not {"recipe", "scorers", "ablations"} & set(entry)
        return
    first, shared = (results.rows_of_entry(one)[0] for one in (entry, ENTRIES[entry.get("runs", name)]))
    assert (first.recipe, first.run) == (shared.recipe, shared.run)


def test_every_kept_file_is_an_entry_as_it_stands_and_small():
    kept = {path.stem: path for path in results.KEPT.glob("*.json")}
    assert set(kept) <= set(ENTRIES)
    for name, path in kept.items():
        assert read_json(path)["entry"] == ENTRIES[name], name
        assert path.stat().st_size < 400_000, name


def test_every_entry_stands_in_a_table():
    texts = [document.read_text(encoding="utf-8") for document in results.DOCUMENTS]
    named = {name for text in texts for found in results.MARKED.finditer(text) for name in found[3].split()}
    assert named == set(ENTRIES)


@pytest.fixture(scope="module")
def world(small_world, tmp_path_factory):
    """A tiny world with one entry that was run, and the folder that keeps it."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "fused.toml").write_text(dump_recipe(small_world.recipe(*FUSED, "llm.enabled=false")))
    entries = {"one": {"name": "one", "dataset": "source", "recipe": str(folder / "fused.toml"), "seeds": [0, 1],
                       "scorers": ["fusion", "cf"]}}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "entries", lambda: entries)
        patch.setenv("ALLREC_DATA", str(small_world.dataset.parent))
        patch.setenv("ALLREC_RESULTS", str(folder / "out"))
        patch.setenv("ALLREC_CACHE", str(small_world.cache))
        results.run(["one"], folder / "kept")
        yield folder, entries


def test_a_run_is_kept_small_and_its_table_is_written_from_it(world):
    folder, _ = world
    stored = read_json(folder / "kept" / "one.json")
    assert set(stored["metrics"]) == {"0", "1"}
    wanted = {"protocol": "full", "scorer": "fusion", "segment": "new"}
    own = read_json(folder / "out" / "one" / RUNS / "fused-seed1" / "metrics.json")
    (row,) = [row for row in own["results"] if wanted.items() <= row.items() and row["split"] == "test"]
    (kept,) = [row for row in stored["metrics"]["1"]["results"] if wanted.items() <= row.items()]
    assert kept["NDCG@10"] == pytest.approx(row["NDCG@10"], rel=1e-5)
    assert "split" not in kept
    text = results.filled("<!-- table: scores one -->\nold\n<!-- end of table -->\n", folder / "kept")
    assert "old" not in text
    assert f"({results.number(stored['rows'][0]['test']['HR@1'][1])} to" in text
    assert "| source | cf | 2 | " in text
    assert results.filled(text, folder / "kept") == text


def test_what_is_there_is_not_made_again_and_a_changed_entry_is(world, monkeypatch):
    folder, entries = world
    monkeypatch.setattr(results, "measured", lambda entry: {"rows": "new"})
    results.run(["one"], folder / "kept")
    stored = read_json(folder / "kept" / "one.json")
    assert stored["rows"] != "new"
    results.write_text(folder / "other" / "one.json", results.as_text(stored))
    monkeypatch.setitem(entries, "one", entries["one"] | {"seeds": [0]})
    results.run(["one"], folder / "other")
    assert read_json(folder / "other" / "one.json")["rows"] == "new"


class Killed(BaseException):
    """As deep as a keyboard interrupt."""


def test_killed_it_leaves_nothing_half_and_goes_on_with_what_was_trained(world, monkeypatch):
    folder, _ = world
    with monkeypatch.context() as patch:
        patch.setattr(results, "slim", lambda metrics: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            results.run(["one"], folder / "killed")
    assert not list(folder.glob("killed/*"))
    with monkeypatch.context() as patch:
        patch.setattr("allrec.runs.stages.train_backbone", lambda *_, **__: pytest.fail("trained again"))
        results.run(["one"], folder / "killed")
    again, before = (read_json(folder / name / "one.json") for name in ("killed", "kept"))
    assert again["metrics"] == before["metrics"]
    assert again["rows"] == before["rows"]


def test_numbers_are_written_as_in_tables():
    assert [results.number(value) for value in (0.6971, None, 1.0, -0.0123)] == [".697", "–", "1.000", "-.012"]
    test = Comparison(-0.001, Interval(-0.004, 0.002), 0.4).row()
    assert results.difference(test) == "-0.0010 (-0.0040 to +0.0020), p = 0.400, not worse"
    assert results.difference(test, -1) == "+0.0010 (-0.0020 to +0.0040), p = 0.400"
    assert results.difference(test | {"ci95": [-0.006, 0.002]}).endswith("p = 0.400")
    assert json.loads(results.as_text({"a": {"b": [{"c": 1 / 3}]}})) == {"a": {"b": [{"c": 0.333333}]}}


def test_an_unknown_entry_is_named():
    with pytest.raises(SystemExit, match="has no entry 'nothing'"):
        results.table("scores", ["nothing"])
