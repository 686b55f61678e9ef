"""What messages about runs, recommendations and reports advise, done as it is written."""

import html
import json
import re
import shlex

import pytest
from tests.llm.test_llm_advice import extra
from tests.remedies import advises, program, refused
from tests.tiny import save_tiny
from tests.worlds import make_world

from allrec.config import dump_recipe
from allrec.data import SimulationConfig, load_dataset, prepare, simulate
from allrec.recommender import AllRec
from allrec.report import page
from allrec.report.page import write_report
from allrec.runs.run_folder import MANIFEST, RunFolder
from allrec.runs.scorers import _lists_fit
from allrec.runs.trained_model import device_of


class World:
    """A data set, a tiny language model, a recipe, and a run of them; ``train`` makes others."""

    def __init__(self, folder):
        self.folder = folder
        self.dataset, self.llm, recipe = make_world(folder)
        self.recipe = folder / "recipe.toml"
        self.recipe.write_text(dump_recipe(recipe))
        self.run = folder / "run"
        self.item_ids, self.user_ids = load_dataset(self.dataset).item_ids, load_dataset(self.dataset).user_ids

    def train(self, run, *options, dataset=None):
        given = ("--recipe", self.recipe, "--llm", self.llm, *options)
        return program("train", dataset or self.dataset, "--run", run, *given)


WITHOUT_LLM = ("--set", "llm.enabled=false", "--set", 'evaluation.protocols=["paper"]')


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("world"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLREC_CACHE", str(made.folder / "cache"))
        made.train(made.run, "--set", "prompt.lists_candidates=true")
        yield made


@pytest.fixture
def quick(world, tmp_path):
    """A run without a language model."""
    world.train(tmp_path / "quick", *WITHOUT_LLM)
    return tmp_path / "quick"


def command(message, before, **given):
    """The command of the program that a message ends with, its capitals filled in."""
    words = shlex.split(message.partition(before)[2].partition(" `")[0])
    return [given.get(word, word) for word in words]


# Run folders


def test_another_run_folder_is_given(world, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with refused("expected a new or empty folder. Give another --run."):
        world.train(tmp_path / "mine", *WITHOUT_LLM)
    world.train(tmp_path / "new", *WITHOUT_LLM)
    assert RunFolder.open(tmp_path / "new").is_done("backbone")


def test_a_run_is_gone_on_with_or_another_given(world, quick, tmp_path):
    with refused("already holds a run ({}). Go on with it: --resume. Or give another --run."):
        world.train(quick, *WITHOUT_LLM)
    world.train(quick, *WITHOUT_LLM, "--resume")
    with refused("was begun with another recipe. Resume with the one in {}, or give another --run.") as caught:
        world.train(quick, *WITHOUT_LLM, "--resume", "--set", "seed=5")
    own = re.search(r"Resume with the one in (\S+),", str(caught.value))[1]
    program("train", world.dataset, "--run", quick, "--resume", "--recipe", own)
    world.train(tmp_path / "other", *WITHOUT_LLM, "--set", "seed=5")
    assert RunFolder.open(tmp_path / "other").recipe().seed == 5


def test_a_run_is_made_where_there_is_none(world, tmp_path):
    with refused("it has no {}. Make one: allrec train DATASET --run {}") as caught:
        AllRec.from_pretrained(tmp_path / "run")
    made = command(str(caught.value), "Make one: allrec ", DATASET=str(world.dataset))
    program(*made, "--recipe", world.recipe, *WITHOUT_LLM)
    assert AllRec.from_pretrained(tmp_path / "run").recommend(history=[], k=1)


@pytest.mark.parametrize("is_other_version", [True, False])
def test_a_run_that_cannot_be_read_is_trained_anew(world, quick, tmp_path, is_other_version):
    manifest = json.loads((quick / MANIFEST).read_text())
    manifest = manifest | {"format": 0} if is_other_version else {"format": manifest["format"]}
    (quick / MANIFEST).write_text(json.dumps(manifest))
    if is_other_version:
        with refused("has run format {}, this version reads {}. Train it anew."):
            AllRec.from_pretrained(quick)
    else:
        with refused("is damaged: it says nothing of {}. Train it anew."):
            AllRec.from_pretrained(quick)
    world.train(tmp_path / "anew", *WITHOUT_LLM)
    assert AllRec.from_pretrained(tmp_path / "anew").recommend(history=[], k=1)


def test_the_runs_own_data_set_is_given_or_another_run_trained(world, quick, tmp_path):
    simulate(tmp_path / "source", SimulationConfig(num_users=60, num_items=50, mean_interactions=6, seed=5))
    other = prepare(tmp_path / "source", tmp_path / "dataset")
    with refused("Give the run's own data set, or train another run."):
        program("evaluate", quick, other.path)
    program("evaluate", quick, world.dataset)
    world.train(tmp_path / "of-other", *WITHOUT_LLM, dataset=other.path)
    program("evaluate", tmp_path / "of-other", other.path)


def test_a_stage_that_is_not_done_is_resumed(world, quick):
    manifest = json.loads((quick / MANIFEST).read_text())
    manifest["stages"]["alignment"] = {"state": "running", "seconds": 1.0}
    (quick / MANIFEST).write_text(json.dumps(manifest))
    with refused("stage {} is {}. Resume with: allrec train DATASET --run {} --resume") as caught:
        AllRec.from_pretrained(quick)
    program(*command(str(caught.value), "Resume with: allrec ", DATASET=str(world.dataset)))
    assert AllRec.from_pretrained(quick).recommend(history=[], k=1)


def test_a_copy_goes_to_a_new_folder(quick, tmp_path):
    system = AllRec.from_pretrained(quick)
    with refused("is not empty. Give a new folder."):
        system.save_pretrained(quick)
    system.save_pretrained(tmp_path / "copy")
    assert AllRec.from_pretrained(tmp_path / "copy").recommend(history=[], k=1)


def test_the_cpu_is_tried():
    with refused("expected one that torch can use here: {}. Try cpu."):
        device_of("no-such-device")
    assert device_of("cpu") == "cpu"


# What training checks first


def small(folder, name, rows, items="item_id,title\nx,Kettle\ny,Pot\nz,Pan\n"):
    (folder / f"{name}.csv").write_text("\n".join(["user_id,item_id", *rows]))
    (folder / f"{name}-items.csv").write_text(items)
    return prepare(folder / f"{name}.csv", folder / name, items=folder / f"{name}-items.csv").path


def test_a_data_set_gets_titles_and_longer_histories(world, tmp_path):
    rows = [f"{user},{item}" for user in "abcd" for item in "xyzw"]
    items = "".join(f"{item},{item} soap\n" for item in "xyzw")
    textless = small(tmp_path, "textless", rows, "item_id\nx\ny\nz\nw\n")
    with refused("no item has a text. Prepare it with an items file that has a title column."):
        world.train(tmp_path / "run", *WITHOUT_LLM, dataset=textless)
    short = small(tmp_path, "short", ["a,x", "a,y", "b,x"], "item_id,title\n" + items)
    with refused("no user has three interactions. Prepare a source of longer ones."):
        world.train(tmp_path / "run", *WITHOUT_LLM, dataset=short)
    good = small(tmp_path, "good", rows, "item_id,title\n" + items)
    world.train(tmp_path / "run", *WITHOUT_LLM, dataset=good)
    assert AllRec.from_pretrained(tmp_path / "run").recommend(history=[], k=1)


@pytest.mark.parametrize(
    ("positions", "sets"),
    [
        (150, ("--set", "prompt.max_title_tokens=4", "--set", "soft_tokens.num_candidates=4")),
        (150, ("--set", "soft_tokens.num_candidates=2")),
        (1024, ()),
    ],
)
def test_prompts_are_made_to_fit(world, tmp_path, positions, sets):
    long = {"--set": "prompt.max_title_tokens=30"}
    rows = [f"{user},{item}" for user in "abcdef" for item in range(12)]
    titles = "".join(f"{item},{item} {' silver' * 40}\n" for item in range(12))
    dataset = small(tmp_path, "long", rows, "item_id,title\n" + titles)
    tight = save_tiny(tmp_path / "tight", max_position_embeddings=150)
    given = ("--recipe", world.recipe, *next(iter(long.items())), "--set", 'evaluation.protocols=["full"]')
    given = (*given, "--set", "prompt.lists_candidates=true")
    with refused("Lower prompt.max_title_tokens or soft_tokens.num_candidates, or take a model that reads more."):
        program("train", dataset, "--run", tmp_path / "run", "--llm", tight, *given)
    wide = save_tiny(tmp_path / "wide", max_position_embeddings=positions)
    program("train", dataset, "--run", tmp_path / "run", "--llm", wide, *given, *sets)
    assert RunFolder.open(tmp_path / "run").is_done("language_model")
    # A small model lists no candidates where that is left open, and needs no room for them.
    program("train", dataset, "--run", tmp_path / "small", "--llm", tight, *given[:-2])


# Recommending


def test_fewer_candidates_are_given_or_the_language_model_left_out(world):
    system = AllRec.from_pretrained(world.run)
    system.model.builder.max_length = 200
    with refused("Give fewer, or rank without it: use_llm=False, --no-llm."):
        system.rank(world.item_ids[:40], history=[])
    assert len(system.rank(world.item_ids[:2], history=[])) == 2
    assert len(system.rank(world.item_ids[:40], history=[], use_llm=False)) == 40
    listed = ",".join(world.item_ids[:40])
    shown = program("recommend", world.run, "--history", "", "--candidates", listed, "--no-llm", "-k", 40, "--json")
    assert len(json.loads(shown)) == 40


def test_a_model_that_reads_more_or_shorter_titles_fit_lists(world):
    system = AllRec.from_pretrained(world.run)
    targets = load_dataset(world.dataset).targets["test"]
    system.model.builder.max_length = 200
    advises(
        _lists_fit(system.model, targets, "paper"),
        "Lower prompt.max_title_tokens, or take a model that reads more.",
    )
    system.model.builder.max_length = 1024
    assert _lists_fit(system.model, targets, "paper") is None


def test_candidates_are_left_out_where_a_prompt_lists_none(world, tmp_path):
    world.train(tmp_path / "bare", "--set", "prompt.lists_candidates=false", "--set", "evaluation.llm_users=2")
    system = AllRec.from_pretrained(tmp_path / "bare")
    known, some = world.item_ids[:3], world.item_ids[:5]
    with refused("so none can be given. Leave them out, or train with --set prompt.lists_candidates=true."):
        system.generate(history=known, candidates=some)
    assert system.generate(history=known)
    assert AllRec.from_pretrained(world.run).generate(history=known, candidates=some)


def test_genres_are_asked_for_without_candidates_and_of_a_source_that_has_them(world, tmp_path):
    system = AllRec.from_pretrained(world.run)
    known = world.item_ids[:3]
    with refused("candidates are titles to choose from; genres have none. Leave them out."):
        system.generate(history=known, task="genres", candidates=known)
    assert isinstance(system.generate(history=known, task="genres"), list)
    rows = [f"{user},{item}" for user in "abcdef" for item in "xyzw"]
    options = ("--set", "prompt.lists_candidates=true", "--set", "evaluation.llm_users=2")
    for name, items in (("plain", "item_id,title\n"), ("with", "item_id,title,genres\n")):
        more = ",Kitchen" if name == "with" else ""
        items += "".join(f"{item},{item} soap{more}\n" for item in "xyzw")
        world.train(tmp_path / f"run-{name}", *options, dataset=small(tmp_path, name, rows, items))
    plain = AllRec.from_pretrained(tmp_path / "run-plain")
    with refused("Prepare a source that has one, and train anew; or ask for a title."):
        plain.generate(history=["x"], task="genres")
    assert plain.generate(history=["x"])
    assert isinstance(AllRec.from_pretrained(tmp_path / "run-with").generate(history=["x"], task="genres"), list)


def test_a_run_with_a_language_model_and_a_head_is_trained(world, quick, tmp_path):
    without = AllRec.from_pretrained(quick)
    with refused("It can recommend and rank; for more, train another run with llm.enabled=true."):
        without.generate(user=world.user_ids[0])
    assert without.recommend(user=world.user_ids[0], k=1)
    assert without.rank(world.item_ids[:2], user=world.user_ids[0])
    with refused("this run has no read-out head. Train one with: --set readout.enabled=true") as caught:
        _ = AllRec.from_pretrained(world.run).model.readout
    sizes = ("readout.head.dim=8", "readout.sample=40", "readout.validation_users=20", "readout.loop.epochs=1")
    quickly = [part for size in sizes for part in ("--set", size)]
    world.train(tmp_path / "read", *shlex.split(str(caught.value).partition("with: ")[2]), *quickly)
    assert AllRec.from_pretrained(tmp_path / "read").model.readout is not None
    assert AllRec.from_pretrained(world.run).generate(user=world.user_ids[0])


def test_what_the_history_holds_may_come_again(world):
    every = ",".join(world.item_ids)
    shown = program("recommend", world.run, "--history", every, "--no-llm")
    advises(shown, "Nothing is left to recommend: every item is in the history. --with-history recommends them again.")
    again = program("recommend", world.run, "--history", every, "--no-llm", "--with-history", "--json")
    assert json.loads(again)


# Reports


def test_a_report_has_figures_where_matplotlib_is_installed(world, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(page, "has_matplotlib", lambda: False)
        plain = html.unescape(write_report(world.run, out=tmp_path / "plain.html").read_text())
    advises(plain, "Without matplotlib there are no figures. Install it: pip install 'allrec[report]'")
    assert "matplotlib" in extra("report")
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    assert "<img" in write_report(world.run, out=tmp_path / "page.html").read_text()


def test_a_report_is_made_of_a_run(world, tmp_path):
    with refused("is neither a run nor a comparison. Make one: allrec train, or allrec compare."):
        write_report(tmp_path)
    world.train(tmp_path / "run", *WITHOUT_LLM)
    assert write_report(tmp_path / "run").is_file()
