"""Recommendations for every user: those of ``recommend``, each user once, in the same bytes wherever they are made."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import polars as pl
import pytest
from tests.remedies import program, refused

from allrec.config import dump_recipe
from allrec.errors import InputError
from allrec.files import read_json, sha256_file, write_json
from allrec.hybrid import retrieval
from allrec.parallel import Processes, ThisProcess
from allrec.recommender import AllRec
from allrec.runs import recommend_all as module
from allrec.runs import trained_model
from allrec.runs.recommend_all import DONE, REQUEST
from worlds import FUSED, make_world


@pytest.fixture(scope="module", params=["a-llmrec", "allround"])
def trained(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    dataset, llm, recipe = make_world(folder, FUSED if request.param == "allround" else ())
    AllRec.train(dataset, run=folder / "run", recipe=recipe, llm=str(llm), cache=folder / "cache", is_evaluated=False)
    return AllRec.from_pretrained(folder / "run")


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fused")
    dataset, _, recipe = make_world(folder, (*FUSED, "llm.enabled=false"))
    return AllRec.train(dataset, run=folder / "run", recipe=recipe, cache=folder / "cache", is_evaluated=False)


def bytes_of(out):
    return {path.name: path.read_bytes() for path in sorted((out / "parts").iterdir())}


def rows_of(out):
    done = read_json(out / DONE)
    return pl.concat([pl.read_parquet(out / "parts" / part) for part in done["parts"]])


def is_same(row, item, rank):
    same = (row["item_id"], row["rank"]) == (item.item_id, rank) and row["score"] == pytest.approx(item.score, abs=2e-4)
    if item.contributions is None:
        return same and "contributions" not in row
    got = {name: value for name, value in (row["contributions"] or {}).items() if value is not None}
    return same and got == pytest.approx(item.contributions, abs=2e-4)


@pytest.mark.parametrize("use_llm", [True, False])
def test_the_rows_are_those_of_recommend_for_every_user(trained, tmp_path, use_llm):
    users = trained.model.catalogue.user_ids
    done = trained.recommend_all(tmp_path / "out", k=7, use_llm=use_llm, users_a_part=37)
    table = rows_of(tmp_path / "out")
    assert done["users"] == len(users)
    assert table["user_id"].to_list() == [user for user in users for _ in range(7)]
    assert sorted(bytes_of(tmp_path / "out")) == sorted(done["parts"])
    different = 0
    for user in users[::5]:
        found = trained.recommend(user=user, k=7, use_llm=use_llm)
        rows = table.filter(pl.col("user_id") == user).to_dicts()
        different += not all(is_same(row, item, rank) for rank, (row, item) in enumerate(zip(rows, found, strict=True)))
    assert different == 0


def test_two_processes_write_the_same_bytes(fused, tmp_path):
    fused.recommend_all(tmp_path / "here", k=5, users_a_part=20)
    fused.recommend_all(tmp_path / "processes", k=5, users_a_part=20, engine=Processes(2))
    assert len(bytes_of(tmp_path / "here")) == 4
    assert bytes_of(tmp_path / "here") == bytes_of(tmp_path / "processes")
    assert (tmp_path / "here" / DONE).read_bytes() == (tmp_path / "processes" / DONE).read_bytes()
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["parts", DONE, REQUEST]


def test_workers_read_no_user_but_those_of_their_part(fused, tmp_path, monkeypatch):
    def all_of_them(folder):
        raise AssertionError("a worker reads the histories of all users")

    fused.recommend_all(tmp_path / "here", k=5, users_a_part=20)
    with monkeypatch.context() as patched:
        patched.setattr(trained_model, "load_training_histories", all_of_them)
        fused.recommend_all(tmp_path / "worker", k=5, users_a_part=20, engine=ThisProcess())
    (worker,) = module._loaded.values()
    assert worker is not fused.model
    assert (worker.catalogue.user_ids, len(worker.catalogue.items)) == ([], 0)
    assert worker.occurrences.num_trained == worker.catalogue.num_items == fused.model.catalogue.num_items
    assert bytes_of(tmp_path / "worker") == bytes_of(tmp_path / "here")


def test_workers_share_the_indexes_that_were_built_for_them(fused, tmp_path, monkeypatch):
    recipe = fused.run.recipe()
    search = recipe.fusion.evidence.search.model_copy(update={"kind": "faiss", "probes": 1})
    evidence = recipe.fusion.evidence.model_copy(update={"search": search})
    recipe = recipe.model_copy(update={"fusion": recipe.fusion.model_copy(update={"evidence": evidence})})
    shutil.copytree(fused.run.path, tmp_path / "run")
    (tmp_path / "run" / "recipe.toml").write_text(dump_recipe(recipe))
    manifest = read_json(tmp_path / "run" / "manifest.json")
    manifest["recipe_sha256"] = sha256_file(tmp_path / "run" / "recipe.toml")
    write_json(tmp_path / "run" / "manifest.json", manifest)
    system = AllRec.from_pretrained(tmp_path / "run")
    system.recommend_all(tmp_path / "here", k=5, users_a_part=20)

    def again(items):
        raise AssertionError("a worker builds an index of its own")

    with monkeypatch.context() as patched:
        patched.setattr(retrieval, "trained_index", again)
        system.recommend_all(tmp_path / "shared", k=5, users_a_part=20, engine=ThisProcess())
    system.recommend_all(tmp_path / "processes", k=5, users_a_part=20, engine=Processes(2))
    assert bytes_of(tmp_path / "shared") == bytes_of(tmp_path / "here") == bytes_of(tmp_path / "processes")
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["parts", DONE, REQUEST]
    table = rows_of(tmp_path / "shared")
    for user in system.model.catalogue.user_ids[::5]:
        rows = table.filter(pl.col("user_id") == user).to_dicts()
        found = system.recommend(user=user, k=5)
        assert all(is_same(row, item, rank) for rank, (row, item) in enumerate(zip(rows, found, strict=True)))


def test_with_a_language_model_another_process_writes_the_same_bytes(trained, tmp_path):
    for name, engine in (("here", None), ("process", Processes(1))):
        trained.recommend_all(tmp_path / name, k=3, users_a_part=40, engine=engine)
    assert bytes_of(tmp_path / "here") == bytes_of(tmp_path / "process")


def test_a_part_that_was_lost_or_damaged_is_made_again(fused, tmp_path):
    done = fused.recommend_all(tmp_path / "out", k=3, users_a_part=20)
    whole = bytes_of(tmp_path / "out")
    lost, damaged, *_ = done["parts"]
    (tmp_path / "out" / "parts" / lost).unlink()
    (tmp_path / "out" / "parts" / damaged).write_bytes(b"junk")
    assert fused.recommend_all(tmp_path / "out", k=3, users_a_part=20) == done
    assert bytes_of(tmp_path / "out") == whole


def test_a_damaged_job_is_told_in_a_sentence(fused, tmp_path):
    fused.recommend_all(tmp_path / "out", k=3, users_a_part=20)
    (tmp_path / "out" / DONE).unlink()
    (tmp_path / "out" / "users").mkdir()
    file = tmp_path / "out" / "users" / "000000.parquet"
    file.write_bytes(b"junk")
    with refused("is damaged: {}. Delete it, and run the command again."):
        fused.recommend_all(tmp_path / "out", k=3, users_a_part=20)
    file.unlink()
    fused.recommend_all(tmp_path / "out", k=3, users_a_part=20)
    (tmp_path / "out" / REQUEST).write_text("[]")
    with refused("{} is damaged, expected an object. Give another --out."):
        fused.recommend_all(tmp_path / "out", k=3, users_a_part=20)
    fused.recommend_all(tmp_path / "another", k=3, users_a_part=20)


def test_a_run_that_has_changed_is_loaded_anew(fused, tmp_path):
    shutil.copytree(fused.run.path, tmp_path / "run")
    system = AllRec.from_pretrained(tmp_path / "run")
    system.recommend_all(tmp_path / "first", k=3, engine=ThisProcess())
    system.add_items([{"item_id": "new", "title": "a new item"}])
    system.recommend_all(tmp_path / "second", k=3, engine=ThisProcess())
    (worker,) = module._loaded.values()
    assert worker.catalogue.item_ids[-1] == "new"


class Seen:
    """Notes what tasks ask for and where they would compute; recommends to nobody."""

    def __init__(self):
        self.tasks = []

    def map(self, work, parts, needs):
        if isinstance(work, module.RecommendUsers):
            self.tasks.append((work.device, needs.gpus))
            return iter(())
        return ThisProcess().map(work, parts)


@pytest.mark.parametrize(
    ("device", "use_llm", "gpus", "expected"),
    [
        ("cuda", True, None, ("cuda", 1.0)),
        ("cuda:1", True, 0.5, ("cuda:1", 0.5)),
        ("cuda", False, None, ("cpu", 0.0)),
        ("cuda", True, 0.0, ("cpu", 0.0)),
        ("cpu", True, None, ("cpu", 0.0)),
        ("cpu", True, 1.0, ("cuda", 1.0)),
    ],
)
def test_a_task_that_reads_asks_for_an_accelerator(trained, tmp_path, monkeypatch, device, use_llm, gpus, expected):
    monkeypatch.setattr(trained.model, "device", device)
    seen = Seen()
    trained.recommend_all(tmp_path / "out", k=3, use_llm=use_llm, engine=seen, gpus=gpus)
    assert seen.tasks == [expected]


def test_accelerators_a_task_need_an_engine(fused, tmp_path):
    given = [
        "recommend-all",
        fused.run.path,
        "--out",
        tmp_path / "out",
        "--gpus",
        "0",
        "--users-a-part",
        "40",
        "--no-llm",
    ]
    with refused("got --gpus {} for the engine here, which has --device. Give another --engine."):
        program(*given)
    program(*given, "--engine", "processes")


@pytest.mark.parametrize("gpus", [-1.0, 1.5, float("nan"), float("inf")])
def test_accelerators_that_no_task_can_have_are_refused(fused, tmp_path, gpus):
    with pytest.raises(InputError, match=f"got {gpus} accelerators a task, expected a share from 0 to 1 or a whole"):
        fused.recommend_all(tmp_path / "out", k=3, gpus=gpus)
    assert not (tmp_path / "out").exists()


def test_a_run_without_a_language_model_asks_for_none(fused, tmp_path, monkeypatch):
    monkeypatch.setattr(fused.model, "device", "cuda")
    seen = Seen()
    fused.recommend_all(tmp_path / "out", k=3, engine=seen)
    assert seen.tasks == [("cpu", 0.0)]


def test_where_k_asks_for_more_than_was_retrieved_the_rest_follows_as_in_recommend(fused, tmp_path):
    catalogue = fused.model.catalogue
    fused.recommend_all(tmp_path / "out", k=catalogue.num_items, users_a_part=40)
    table = rows_of(tmp_path / "out")
    for user in catalogue.user_ids[:4]:
        rows = table.filter(pl.col("user_id") == user)
        expected = [item.item_id for item in fused.recommend(user=user, k=catalogue.num_items)]
        assert rows["item_id"].to_list() == expected
        assert rows["rank"].to_list() == list(range(len(expected)))
    owned = len(np.unique(catalogue.history(0)))
    assert len(table.filter(pl.col("user_id") == catalogue.user_ids[0])) == catalogue.num_items - owned


def test_the_same_command_again_does_nothing_and_another_is_refused(fused, tmp_path):
    out = tmp_path / "out"
    done = fused.recommend_all(out, k=3)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert fused.recommend_all(out, k=3) == done
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    with refused("holds recommendations of another job: {} differ. Give another --out.") as caught:
        fused.recommend_all(out, k=4)
    assert "another job: k differ" in str(caught.value)
    assert fused.recommend_all(tmp_path / "four", k=4)["request"]["k"] == 4
    with pytest.raises(InputError, match="got k = 0"):
        fused.recommend_all(out, k=0)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    with refused("is in use and holds no recommendations, expected a new or empty folder. Give another."):
        fused.recommend_all(tmp_path / "used")
    (tmp_path / "empty").mkdir()
    assert fused.recommend_all(tmp_path / "empty", k=3)["parts"] == done["parts"]


def test_a_run_that_changes_meanwhile_is_refused_by_its_workers(fused, tmp_path):
    shutil.copytree(fused.run.path, tmp_path / "run")
    system = AllRec.from_pretrained(tmp_path / "run")
    manifest = read_json(tmp_path / "run" / "manifest.json")
    manifest["added"] = []
    manifest["llm"] = {"name": "another"}
    write_json(tmp_path / "run" / "manifest.json", manifest)
    with refused("has changed since this job began. Begin anew with another --out."):
        system.recommend_all(tmp_path / "out", engine=Processes(1))
    again = AllRec.from_pretrained(tmp_path / "run")
    assert again.recommend_all(tmp_path / "anew", engine=Processes(1))["users"] == len(again.model.catalogue.user_ids)


PROGRAM = "from allrec.cli.commands import main\nif __name__ == '__main__':\n    main()\n"


@pytest.mark.slow
def test_killed_again_and_again_every_user_comes_once_in_the_same_bytes(fused, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    paths = os.pathsep.join(path for path in sys.path if path)
    out = tmp_path / "killed"
    command = [
        sys.executable, str(program), "recommend-all", str(fused.run.path), "--out", str(out), "--k", "4",
        "--users-a-part", "4", "--engine", "processes", "--workers", "2",
    ]  # fmt: skip
    parts, kills = out / "parts", 0
    while not (out / DONE).exists() and kills < 2:
        before = len(list(parts.glob("*.parquet"))) if parts.exists() else 0
        with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE) as process:
            while process.poll() is None:
                if parts.exists() and len(list(parts.glob("*.parquet"))) > before + 1:
                    process.send_signal(signal.SIGKILL)
                    kills += 1
                    break
                time.sleep(0.002)
    assert kills == 2
    fused.recommend_all(out, k=4, users_a_part=4)
    fused.recommend_all(tmp_path / "whole", k=4, users_a_part=4)
    done = read_json(out / DONE)
    assert bytes_of(out) == bytes_of(tmp_path / "whole")
    assert rows_of(out)["user_id"].to_list() == [user for user in fused.model.catalogue.user_ids for _ in range(4)]
    assert len(done["parts"]) == len(set(done["parts"])) == 20
