"""What messages about fusion, content and retrieval advise, done."""

import numpy as np
import pytest
from tests.hybrid.test_evidence import pairs_world, quick_config  # noqa: F401
from tests.hybrid.test_fusion_fitting import QUICK as QUICKLY_FITTED
from tests.hybrid.test_fusion_fitting import fitted, world
from tests.hybrid.test_nearest import tables
from tests.llm.test_llm_advice import extra
from tests.remedies import refused
from tests.training.histories import dataset_of
from tests.worlds import FUSED, make_world

from allrec.config import dump_recipe, load_recipe
from allrec.data import prepare
from allrec.hybrid import retrieval
from allrec.hybrid.content import NextItems, load_content_parts, save_content_parts, train_content_parts
from allrec.hybrid.retrieval import Search, SearchConfig
from allrec.recommender import AllRec

FAST = ("llm.enabled=false", 'evaluation.protocols=["paper"]')


@pytest.fixture
def quickly():
    return QUICKLY_FITTED.model_copy(update={"loop": QUICKLY_FITTED.loop.model_copy(update={"epochs": 1})})


def test_lists_are_mended(quickly):
    lists = world(40)
    with refused("expected at least 2. Give longer histories."):
        fitted(lists.take(np.arange(1)), config=quickly)
    with refused("does not hold its target once. Add it to the candidates."):
        fitted(lists._replace(targets=lists.targets + 99), config=quickly)
    with refused("is not finite. Leave it out, or mend it."):
        fitted(lists._replace(features=lists.features * np.float32([np.nan, 1, 1])), config=quickly)
    assert fitted(lists, config=quickly).reports
    left_out = lists._replace(features=(lists.features * np.float32([np.nan, 1, 1]))[:, :, 1:])
    assert fitted(left_out, ("text", "log_count"), config=quickly).reports


def test_longer_histories_have_next_items():
    config = quick_config().tower
    with refused("no user has two different training items, expected some. Give longer histories."):
        NextItems(dataset_of([[0, 1, 2], [1, 1, 1, 2]], 3), config, 0)
    assert len(NextItems(dataset_of([[0, 1, 2, 0, 1]], 3), config, 0).targets) == 2


def test_the_catalogue_of_the_content_is_given(pairs_world, tmp_path):  # noqa: F811
    dataset, texts = pairs_world
    save_content_parts(tmp_path, train_content_parts(dataset, texts, quick_config(), seed=0))
    with refused("Give the catalogue it was trained on."):
        load_content_parts(tmp_path, dataset.titles[:-1], texts[:-1], quick_config())
    assert len(load_content_parts(tmp_path, dataset.titles, texts, quick_config()).tuned()) == dataset.num_items


def test_faiss_is_installed_or_done_without(monkeypatch):
    _, items = tables()
    with monkeypatch.context() as patch:
        patch.setattr(retrieval, "find_spec", lambda name: None)
        with refused("'allrec[faiss]'; or search without it: --set fusion.evidence.search.kind=exact"):
            Search(items, SearchConfig(kind="faiss"))
        recipe = load_recipe("allround", ("fusion.evidence.search.kind=exact",))
        assert not Search(items, recipe.fusion.evidence.search).uses_index(1)
    assert "faiss-cpu" in extra("faiss")
    pytest.importorskip("faiss", reason="the extra faiss is not installed")
    assert Search(items, SearchConfig(kind="faiss")).uses_index(1)


def train(folder, dataset, recipe, *sets):
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    chosen = load_recipe(str(folder / "recipe.toml"), (*FAST, *sets))
    number = len(list(folder.glob("run-*")))
    return AllRec.train(
        dataset, run=folder / f"run-{number}", recipe=chosen, cache=folder / "cache", is_evaluated=False
    )


def test_a_run_of_few_users_goes_without_fusion(tmp_path):
    _, _, recipe = make_world(tmp_path, FUSED)
    rows = [f"{user},{item}" for user in "abc" for item in "stuvwxyz"]
    (tmp_path / "few.csv").write_text("\n".join(["user_id,item_id", *rows]))
    (tmp_path / "things.csv").write_text("\n".join(["item_id,title", *(f"{item},{item} soap" for item in "stuvwxyz")]))
    few = prepare(tmp_path / "few.csv", tmp_path / "few", items=tmp_path / "things.csv")
    with refused("too few to fit fusion on. Set fusion.enabled=false."):
        train(tmp_path, few, recipe)
    assert train(tmp_path, few, recipe, "fusion.enabled=false").recommend(user="a", k=1) == []


def test_retrieval_that_finds_hardly_anything_looks_deeper(tmp_path):
    dataset, _, recipe = make_world(tmp_path, FUSED)
    members = "fusion.training.model.members=20"
    with refused("too few to fit fusion on. Set fusion.evidence.depth higher."):
        train(tmp_path, dataset, recipe, members, "fusion.evidence.depth=1")
    assert train(tmp_path, dataset, recipe, members, "fusion.evidence.depth=60").model.fused_ranker is not None
