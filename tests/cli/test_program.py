"""The program as a user calls it: commands, their answers, and what they refuse."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from allrec import recommender
from allrec.cli.commands import app
from allrec.data import load_dataset
from allrec.errors import InputError
from allrec.recommender import AllRec
from program import call
from tiny import save_tiny
from worlds import World


@pytest.fixture(scope="module")
def world(small_world: World, recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The data set, a run on it whose prompts list candidates, and the recipe of that run."""
    run = tmp_path_factory.mktemp("program") / "run"
    options = ("--run", run, "--recipe", recipe_file, "--llm", small_world.llm)
    result = call("train", small_world.dataset, *options, "--set", "prompt.lists_candidates=true")
    assert "protocol paper" in result
    assert "protocol paper, targets new to the user" in " ".join(result.split())
    assert "not worse by more than 0.005" in result
    return small_world.dataset, run, recipe_file


def test_train_writes_what_the_design_says(world: tuple[Path, Path, Path]) -> None:
    metrics = json.loads((world[1] / "metrics.json").read_text())
    assert metrics["format"] == 2
    assert {row["scorer"] for row in metrics["results"]} == {"cf", "joint", "llm", "llm-random-items", "llm-no-soft"}
    assert {row["protocol"] for row in metrics["results"]} == {"paper", "full"}
    assert {row["split"] for row in metrics["results"]} == {"valid", "test"}
    assert metrics["chance"]["paper"]["HR@1"] == 1 / 20
    assert (world[1] / "recipe.toml").is_file()
    assert len(json.loads((world[1] / "answers.json").read_text())["users"]) == 10
    assert list((world[1] / "events").iterdir())


def test_recommend_gives_ids_of_the_data_set(world: tuple[Path, Path, Path]) -> None:
    dataset = load_dataset(world[0])
    found = json.loads(call("recommend", world[1], "--user", dataset.user_ids[0], "-k", 5, "--json"))
    history = {dataset.item_ids[item] for item in dataset.history(0)}
    assert len(found) == 5
    assert {item["item_id"] for item in found} <= set(dataset.item_ids) - history
    assert [item["score"] for item in found] == sorted((item["score"] for item in found), reverse=True)


def test_recommend_keeps_the_history_when_asked(world: tuple[Path, Path, Path]) -> None:
    dataset = load_dataset(world[0])
    arguments = ("recommend", world[1], "--user", dataset.user_ids[0], "-k", 60, "--json")
    assert len(json.loads(call(*arguments, "--with-history"))) == dataset.num_items
    assert len(json.loads(call(*arguments))) == dataset.num_items - len(set(dataset.history(0)))


def test_candidates_are_ranked_and_nothing_else(world: tuple[Path, Path, Path]) -> None:
    ids = load_dataset(world[0]).item_ids
    found = json.loads(call("recommend", world[1], "--history", ids[3], "--candidates", f"{ids[1]},{ids[2]}", "--json"))
    assert {item["item_id"] for item in found} == {ids[1], ids[2]}


@pytest.mark.parametrize("use_llm", [True, False])
def test_ranked_candidates_come_best_first_whatever_their_order_was(
    world: tuple[Path, Path, Path], use_llm: bool
) -> None:
    system, dataset = AllRec.from_pretrained(world[1]), load_dataset(world[0])
    candidates, history = np.arange(10, 18), dataset.history(0).astype(np.int64)
    given = [dataset.item_ids[item] for item in candidates]
    found = system.rank(given, user=dataset.user_ids[0], use_llm=use_llm)
    scores = system.model.item_embeddings[candidates] @ system.model.represent([history])[0]
    if use_llm:
        scores = torch.from_numpy(system.model.llm_scores([history], candidates[None])[0])
    assert len(set(scores.tolist())) == len(candidates)
    assert [item.item_id for item in found] == [given[place] for place in scores.argsort(descending=True)]
    assert [item.score for item in found] == pytest.approx(sorted(scores.tolist(), reverse=True), abs=1e-5)
    if not use_llm:
        assert system.rank(given[::-1], user=dataset.user_ids[0], use_llm=False) == found


def test_a_table_marks_each_item_warm_or_cold(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    AllRec.from_pretrained(world[1]).save_pretrained(tmp_path / "run")
    rows = [{"item_id": f"new-{number}", "title": "A kettle that nobody has bought"} for number in range(2)]
    (tmp_path / "new.jsonl").write_text("\n".join(map(json.dumps, rows)))
    call("add-items", tmp_path / "run", tmp_path / "new.jsonl")
    dataset = load_dataset(world[0])
    bought = [dataset.item_ids[item] for item in np.argsort(-dataset.train_counts())[:2]]
    listed = ",".join([bought[0], "new-0", bought[1], "new-1"])
    shown = call("recommend", tmp_path / "run", "--history", "", "--candidates", listed, "--no-llm")
    marks = dict(re.findall(r"(new-\d|\bi\d+)\b.*\b(warm|cold)\b", shown))
    assert marks == {bought[0]: "warm", bought[1]: "warm", "new-0": "cold", "new-1": "cold"}


@pytest.mark.parametrize("options", [["--no-llm"], []])
def test_a_user_without_history_gets_the_popular(world: tuple[Path, Path, Path], options: list[str]) -> None:
    dataset = load_dataset(world[0])
    counts = dict(zip(dataset.item_ids, dataset.train_counts().tolist(), strict=True))
    found = json.loads(call("recommend", world[1], "--history", "", "-k", 30, "--json", *options))
    assert [counts[item["item_id"]] for item in found] == sorted(counts.values(), reverse=True)[:30]
    # There is nothing that the language model could read.
    assert {item["llm_log_prob"] for item in found} == {None}


def test_evaluate_under_another_protocol(world: tuple[Path, Path, Path]) -> None:
    before = json.loads((world[1] / "metrics.json").read_text())
    call("evaluate", world[1], world[0], "--protocol", "sampled-99")
    metrics = json.loads((world[1] / "metrics.json").read_text())
    assert {row["protocol"] for row in metrics["results"]} == {"paper", "full", "sampled-99"}
    kept = [row for row in metrics["results"] if row["protocol"] != "sampled-99"]
    assert sorted(kept, key=str) == sorted(before["results"], key=str)
    assert metrics["chance"].keys() == {"paper", "full", "sampled-99"}


def test_a_run_that_was_evaluated_on_validation_alone_shows_that(
    small_world: World, recipe_file: Path, tmp_path: Path
) -> None:
    settings = ("llm.enabled=false", 'evaluation.splits=["valid"]', 'evaluation.protocols=["paper"]')
    options = [part for setting in settings for part in ("--set", setting)]
    said = " ".join(
        call("train", small_world.dataset, "--run", tmp_path / "run", "--recipe", recipe_file, *options).split()
    )
    assert ", valid, protocol paper," in said
    assert ", test, protocol" not in said
    assert said.count("│ joint │") == 2


def test_saved_and_loaded_it_scores_the_same(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    system = AllRec.from_pretrained(world[1])
    system.save_pretrained(tmp_path / "copy")
    ids = load_dataset(world[0]).item_ids
    copy = AllRec.from_pretrained(tmp_path / "copy")
    assert copy.rank(ids[:4], history=ids[5:7]) == system.rank(ids[:4], history=ids[5:7])


@pytest.mark.parametrize(("place", "message"), [(1, "already holds a run"), (0, "is in use and holds no run")])
def test_a_folder_in_use_is_refused_before_the_language_model_is_loaded(
    world: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch, place: int, message: str
) -> None:
    monkeypatch.setattr(recommender, "load_language_model", lambda *_: pytest.fail("was loaded"))
    with pytest.raises(InputError, match=message):
        call("train", world[0], "--run", world[place])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("recommend", "{run}", "--user", "nobody"), "unknown user 'nobody'"),
        (("recommend", "{run}", "--history", "no-such-item"), "unknown item 'no-such-item'"),
        (("recommend", "{run}", "--history", " no-such-item , "), "unknown item 'no-such-item'"),
        (("recommend", "{run}"), "give either a user or a history"),
        (("recommend", "{run}", "--history", "", "--candidates", ","), "no candidates were given"),
        (("recommend", "{dataset}", "--history", ""), "no run in"),
        (("train", "{run}", "--run", "{new}"), "is no data set folder"),
        (("train", "{dataset}", "--run", "{run}"), "already holds a run"),
        (("train", "{dataset}", "--run", "{run}", "--resume", "--set", "seed=5"), "begun with another recipe"),
        (("train", "{dataset}", "--run", "{dataset}"), "is in use and holds no run"),
        (("train", "{dataset}", "--run", "{new}", "--recipe", "a-llmrek"), "did you mean 'a-llmrec'"),
        (("train", "{dataset}", "--run", "{new}", "--set", "sead=1"), "did you mean 'seed'"),
        (("train", "{dataset}", "--run", "{new}", "--llm", "{dataset}"), "{dataset}"),
        (("prepare", "{new}", "--out", "{new}"), "no such file or folder"),
    ],
)
def test_a_mistake_gets_one_sentence(
    world: tuple[Path, Path, Path], tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    places = {"dataset": world[0], "run": world[1], "new": tmp_path / "new"}
    with pytest.raises(InputError) as error:
        call(*(argument.format(**places) for argument in arguments))
    assert message.format(**places) in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_mistake_ends_with_exit_code_2_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "allrec.cli.commands", "recommend", str(tmp_path), "--user", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("allrec: no run in ")
    assert len(ended.stderr.splitlines()) == 1


def test_a_place_that_cannot_be_written_is_a_mistake_too(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\na,x\n")
    out = tmp_path / "log.csv" / "out"
    command = [sys.executable, "-m", "allrec.cli.commands", "prepare", str(tmp_path / "log.csv"), "--out", str(out)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"allrec: {tmp_path / 'log.csv'}: ")
    assert len(ended.stderr.splitlines()) == 1


def test_any_option_of_preparation_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\na,x\n")
    (tmp_path / "items.csv").write_text("item_id,title,brand\nx,Kettle,Acme\n")
    options = ("name=7", 'text_columns=["title", "brand"]', 'wording={noun = "thing"}')
    sets = [argument for option in options for argument in ("--set", option)]
    call("prepare", tmp_path / "log.csv", "--items", tmp_path / "items.csv", "--out", tmp_path / "out", *sets)
    dataset = load_dataset(tmp_path / "out")
    assert (dataset.name, dataset.texts, dataset.wording.noun) == ("7", ["Kettle. Acme"], "thing")


def test_a_damaged_artifact_is_named(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    AllRec.from_pretrained(world[1]).save_pretrained(tmp_path / "copy")
    path = tmp_path / "copy" / "alignment" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        AllRec.from_pretrained(tmp_path / "copy")


def test_candidates_that_outgrow_the_model(world: tuple[Path, Path, Path]) -> None:
    system = AllRec.from_pretrained(world[1])
    system.model.builder.max_length = 60
    with pytest.raises(InputError, match="40 candidates outgrow the prompt"):
        system.rank(load_dataset(world[0]).item_ids[:40], history=[])


def test_a_short_prompt_lists_as_many_as_it_has_room_for(world: tuple[Path, Path, Path]) -> None:
    system = AllRec.from_pretrained(world[1])
    system.model.builder.max_length = 140
    known = load_dataset(world[0]).item_ids[:2]
    found = system.recommend(history=known, k=30)
    is_read = [item.llm_log_prob is not None for item in found]
    assert len(found) == 30
    assert 1 < sum(is_read) < 20
    assert is_read == sorted(is_read, reverse=True)
    assert system.generate(history=[])


@pytest.mark.parametrize(
    ("rows", "items", "positions", "message"),
    [
        (["a,x", "a,y", "a,z"], "item_id\nx\n", 1024, "no item has a text"),
        (["a,x", "a,y", "b,x"], "item_id,title\nx,Kettle\n", 1024, "nobody to evaluate"),
        (
            ["a,x", "a,y", "a,z"],
            "item_id,title\nx,Kettle\n",
            64,
            "titles outgrow a prompt: the language model reads 64",
        ),
    ],
)
def test_what_could_only_fail_later_is_refused_before_anything_is_written(
    tmp_path: Path, rows: list[str], items: str, positions: int, message: str
) -> None:
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id", *rows]))
    (tmp_path / "items.csv").write_text(items)
    call("prepare", tmp_path / "log.csv", "--items", tmp_path / "items.csv", "--out", tmp_path / "dataset")
    llm = save_tiny(tmp_path / "llm", max_position_embeddings=positions)
    listing = ("--set", "prompt.lists_candidates=true")
    with pytest.raises(InputError, match=message):
        call("train", tmp_path / "dataset", "--run", tmp_path / "run", "--llm", llm, *listing)
    assert not (tmp_path / "run").exists()


def test_a_run_without_a_language_model_recommends_without_one_and_says_so(
    world: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    call("train", world[0], "--run", tmp_path / "run", "--recipe", world[2], "--set", "llm.enabled=false")
    user = load_dataset(world[0]).user_ids[0]
    result = CliRunner().invoke(app, ["recommend", str(tmp_path / "run"), "--user", user, "-k", "3", "--json"])
    assert len(json.loads(result.stdout)) == 3
    assert "Note: this run has no language model" in result.stderr
    result = CliRunner().invoke(app, ["recommend", str(tmp_path / "run"), "--user", user, "--no-llm"])
    assert "no language model" not in result.stderr
    for task in ("title", "genres"):
        with pytest.raises(InputError, match=r"this run has no language model.*llm\.enabled=true"):
            call("generate", tmp_path / "run", "--user", user, "--task", task)


HEAVY = {"transformers", "sentence_transformers", "scipy", "matplotlib", "gguf", "huggingface_hub"}


def imported_by(*arguments: object) -> set[str]:
    """The libraries that a process of the program has imported when it is done."""
    given = ["allrec", *map(str, arguments)]
    program = (
        f"import sys\nfrom allrec.cli.commands import main\nsys.argv = {given!r}\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "print('IMPORTED', *sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return {name.partition(".")[0] for name in ended.stdout.rpartition("IMPORTED")[2].split()}


def test_help_imports_nothing_heavy() -> None:
    assert not imported_by("--help") & (HEAVY | {"torch", "polars"})


def test_recommending_without_the_language_model_does_not_import_what_reads_it(world: tuple[Path, Path, Path]) -> None:
    imported = imported_by("recommend", world[1], "--history", "", "--no-llm")
    assert "torch" in imported
    assert not imported & HEAVY
