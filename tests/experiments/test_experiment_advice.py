"""What messages of comparisons, baselines and scenarios advise, done as it is written."""

import json
import re
import shlex
from dataclasses import replace

import pytest
from tests.experiments.test_scenarios import drawn
from tests.remedies import program, refused
from tests.training.histories import dataset_of
from tests.worlds import FUSED, make_world

from allrec.config import dump_recipe, load_recipe
from allrec.data import PrepareConfig, SimulationConfig, prepare, simulate
from allrec.experiments.baselines import run_baselines
from allrec.experiments.compare import COMPARISON, rows_of
from allrec.experiments.scenarios import make_scenario, train_scenario, unseen
from allrec.report.page import write_report

FAST = ("llm.enabled=false", 'evaluation.protocols=["paper"]')


class World:
    """A small data set, another one, and a recipe without a language model."""

    def __init__(self, folder):
        self.folder = folder
        self.dataset, _, recipe = make_world(folder)
        self.path = folder / "recipe.toml"
        self.path.write_text(dump_recipe(recipe))
        self.path.write_text(dump_recipe(load_recipe(str(self.path), FAST)))
        simulate(folder / "source2", SimulationConfig(num_users=60, num_items=50, mean_interactions=6, seed=5))
        self.other = prepare(folder / "source2", folder / "other", config=PrepareConfig(name="other world")).path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        made = World(tmp_path_factory.mktemp("world"))
        patch.setenv("ALLREC_CACHE", str(made.folder / "cache"))
        yield made


# Comparisons


def test_rows_are_named_one_way_each(world):
    path = str(world.path)
    with refused("expected one of them. Compare twice, into two folders."):
        rows_of([path], ablations="1", backbones=["gru4rec"])
    assert len(rows_of([path], backbones=["gru4rec"])) == 2
    with refused("got --ablations {}, expected one of {}.") as caught:
        rows_of([path], ablations="9")
    for stage in re.search(r"expected one of (.*)\.", str(caught.value))[1].split(", "):
        assert len(rows_of(["allround"], ablations=stage)) > 1
    with refused("got no recipe to compare, expected at least one: --recipes a-llmrec"):
        rows_of([])
    assert len(rows_of(["a-llmrec"])) == 1
    with refused("expected one each. Name each recipe once."):
        rows_of(["a-llmrec", "a-llmrec"])
    assert len(rows_of(["a-llmrec", "infonce"])) == 2


def test_a_comparison_is_gone_on_with_or_another_folder_given(world, tmp_path):
    given = ("compare", world.dataset, "--recipes", world.path, "--seeds")
    with refused("expected whole numbers with commas, such as --seeds 0,1,2"):
        program(*given, "one", "--out", tmp_path / "out")
    program(*given, "0,1", "--out", tmp_path / "out")
    with refused("already holds {}. Go on with it: --resume. Or give another --out."):
        program(*given, "0,1", "--out", tmp_path / "out")
    program(*given, "0,1", "--out", tmp_path / "out", "--resume")
    program(*given, "0", "--out", tmp_path / "other")
    stored = json.loads((tmp_path / "out" / COMPARISON).read_text())
    unfinished = {key: value for key, value in stored.items() if key != "table"}
    (tmp_path / "out" / COMPARISON).write_text(json.dumps(unfinished))
    with refused("the comparison in {} has no table yet. Continue it: allrec compare ... --resume"):
        write_report(tmp_path / "out")
    program(*given, "0,1", "--out", tmp_path / "out", "--resume")
    assert write_report(tmp_path / "out").is_file()


def test_baselines_of_another_data_set_get_their_own_folder(tmp_path):
    dataset, _, recipe = make_world(tmp_path, (*FUSED, "llm.enabled=false"))
    (tmp_path / "out").mkdir()
    held = {"format": 1, "dataset": {"name": "world", "sha256": "0" * 64}}
    (tmp_path / "out" / "baselines.json").write_text(json.dumps(held))
    given = {"seeds": (0,), "recipe": recipe, "bce": recipe.backbone, "cache": tmp_path / "cache"}
    with refused("holds baselines of {}, got {}. Give another --out."):
        run_baselines(dataset, tmp_path / "out", resume=True, **given)
    run_baselines(dataset, tmp_path / "other", **given)
    assert json.loads((tmp_path / "other" / "baselines.json").read_text())["dataset"]["name"] == "world"


# Scenarios


def test_a_scenario_that_the_data_set_has_room_for_is_tried():
    long = dataset_of([[0, 1, 2, 3, 4]] * 4000, 9)
    with refused("has no user with exactly {} interactions. Try cold-users-2000."):
        make_scenario(long, "cold-users", 0)
    assert len(make_scenario(long, "cold-users-2000", 0).evaluated.targets["test"]) == 2000
    with refused("Give another number, as in {}-{}.") as caught:
        make_scenario(drawn(), "few-shot-9999", 0)
    assert make_scenario(drawn(), re.search(r"as in (\S+)\.$", str(caught.value))[1], 0).train.num_interactions > 0


def test_a_larger_data_set_has_unseen_targets():
    tiny = dataset_of([[0, 1, 2]], 3)
    tiny = replace(tiny, titles=list("abc"), texts=list("abc"))
    with refused("of a user with another item. Take a larger data set."):
        unseen(tiny, 0, share=0.0)
    assert len(unseen(drawn(num_users=200), 0).evaluated.targets["test"])


def test_unseen_items_join_without_a_refit(world, tmp_path):
    refitted = load_recipe(str(world.path), ("refit=valid",))
    with refused("has items that are added after training, and a refit has none. Set refit=none."):
        train_scenario(world.dataset, "unseen", run=tmp_path / "run", recipe=refitted)
    given = ("scenario", world.dataset, "--scenario", "unseen", "--recipe", world.path, "--set", "refit=none")
    program(*given, "--out", tmp_path / "run")
    assert (tmp_path / "run" / "metrics.json").is_file()


def test_a_run_of_the_scenario_is_trained(world, tmp_path):
    program("train", world.dataset, "--run", tmp_path / "run", "--recipe", world.path)
    with refused("Train one: allrec scenario DATASET --scenario {} --out DIR") as caught:
        program("evaluate", tmp_path / "run", world.dataset, "--scenario", "few-shot-20")
    named = {"DATASET": str(world.dataset), "DIR": str(tmp_path / "few")}
    words = shlex.split(str(caught.value).partition("Train one: allrec ")[2])
    program(*(named.get(word, word) for word in words), "--recipe", world.path)
    program("evaluate", tmp_path / "few", world.dataset, "--scenario", "few-shot-20")


def test_another_data_set_is_evaluated_by_a_run_with_decoders(world, tmp_path):
    bare = ("alignment.network.has_decoders=false", "alignment.network.alpha=0", "alignment.network.beta=0")
    sets = [part for one in bare for part in ("--set", one)]
    given = ("--recipe", world.path)
    program("train", world.dataset, "--run", tmp_path / "bare", *given, *sets)
    program("train", world.dataset, "--run", tmp_path / "run", *given)
    with refused("by which a text becomes an item embedding. Train one that has."):
        program("evaluate", tmp_path / "bare", world.other, "--scenario", "cross-domain")
    with refused("trains nothing of its own: allrec evaluate RUN DATASET --scenario {}") as caught:
        program("scenario", world.dataset, "--scenario", "cross-domain", *given, "--out", tmp_path / "out")
    named = {"RUN": str(tmp_path / "run"), "DATASET": str(world.other)}
    program(*(named.get(word, word) for word in shlex.split(str(caught.value).partition("allrec ")[2])))
