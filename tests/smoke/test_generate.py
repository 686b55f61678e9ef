"""``allrec generate`` as a user calls it."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from allrec.errors import InputError
from allrec.files import read_json, sha256_file, write_json
from allrec.recommender import AllRec
from program import call
from worlds import World


@pytest.fixture(scope="module")
def run(small_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, recipe = tmp_path_factory.mktemp("generate") / "run", small_world.recipe("prompt.lists_candidates=true")
    AllRec.train(small_world.dataset, run=path, recipe=recipe, llm=str(small_world.llm), cache=small_world.cache)
    return path


def ids(run: Path) -> list[str]:
    return AllRec.from_pretrained(run).model.catalogue.item_ids


def test_titles_for_a_user(run: Path) -> None:
    user = AllRec.from_pretrained(run).model.catalogue.user_ids[0]
    found = json.loads(call("generate", run, "--user", user, "--task", "title", "-k", 2, "--json"))
    assert len(found) == 2
    assert set(found[0]) == {"title", "score", "item_ids", "is_in_catalogue", "is_candidate"}
    assert found[0]["score"] >= found[1]["score"]
    assert found == [vars(text) for text in AllRec.from_pretrained(run).generate(user=user, k=2)]


def test_candidates_are_the_ones_given(run: Path) -> None:
    first, second, *others = ids(run)
    texts = [
        call("generate", run, "--history", first, "--task", "title", "--candidates", ",".join(listed), "--json")
        for listed in (others[:3], others[3:6], others[:3])
    ]
    assert texts[0] == texts[2] != texts[1]
    with pytest.raises(InputError, match="is in the list twice"):
        call("generate", run, "--history", first, "--task", "title", "--candidates", f"{second},{second}")


def test_prompts_that_list_nothing_take_no_candidates(small_world: World, tmp_path: Path) -> None:
    recipe, llm = small_world.recipe("prompt.lists_candidates=false"), str(small_world.llm)
    system = AllRec.train(small_world.dataset, run=tmp_path / "run", recipe=recipe, llm=llm, cache=small_world.cache)
    first, second = system.model.catalogue.item_ids[:2]
    assert not system.generate(history=[first])[0].is_candidate
    with pytest.raises(InputError, match="prompts list no candidates"):
        system.generate(history=[first], candidates=[second])


@pytest.mark.parametrize("task", ["title", "genres"])
def test_a_newcomer_is_written_for(run: Path, task: str) -> None:
    assert "log P" in call("generate", run, "--history", "", "--task", task)


def test_genres_of_the_simulated_marketplace(run: Path) -> None:
    found = json.loads(call("generate", run, "--history", ids(run)[0], "--task", "genres", "--json"))
    assert [set(text) for text in found] == [{"text", "score", "known", "unknown"}]
    genres = AllRec.from_pretrained(run).model.catalogue.genres
    assert genres is not None
    assert "Kitchen" in genres[0]


def test_a_run_from_before_genres_were_kept(run: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(run, old)
    path = old / "catalogue" / "items.parquet"
    pl.read_parquet(path).drop("genres").write_parquet(path)
    manifest = read_json(old / "manifest.json")
    manifest["stages"]["catalogue"]["sha256"]["items.parquet"] = sha256_file(path)
    write_json(old / "manifest.json", manifest)
    item = ids(old)[0]
    assert "log P" in call("generate", old, "--history", item, "--task", "title")
    with pytest.raises(InputError, match="no genres are known in this run"):
        call("generate", old, "--history", item, "--task", "genres")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--user", "nobody", "--task", "title"), "unknown user 'nobody'"),
        (("--task", "title"), "give either a user or a history"),
        (("--history", "", "--task", "titel"), "unknown task 'titel': did you mean 'title'"),
        (("--history", "", "--task", "genres", "--candidates", "x"), "candidates are titles to choose from"),
        (("--history", "", "--task", "title", "--candidates", ","), "no candidates were given"),
        (("--history", "", "--task", "title", "--candidates", "no-such"), "unknown item 'no-such'"),
    ],
)
def test_a_mistake_gets_one_sentence(run: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call("generate", run, *arguments)
