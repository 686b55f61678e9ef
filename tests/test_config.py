"""Recipes: those of the package, round trips through TOML, changes on the command line, and what is wrong with one."""

import math
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.remedies import advises, refused

from allrec.alignment.text_encoder import TextEncoderConfig
from allrec.config import LanguageModelChoice, Recipe, dump_recipe, load_recipe, recipe_names
from allrec.errors import InputError
from allrec.evaluation.evaluate import EvaluationConfig
from allrec.llm.loading import LanguageModelConfig
from allrec.llm.soft_token_training import SoftTokensStageConfig


def write(folder, text):
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def again(folder, recipe):
    return load_recipe(write(folder, dump_recipe(recipe)))


# What comes with the package


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_of_the_package_loads_under_its_name_and_comes_back(tmp_path, name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert again(tmp_path, recipe) == recipe


def test_the_papers_recipe_is_the_papers():
    recipe = load_recipe("a-llmrec")
    assert recipe.backbone.model.dim == 50
    assert recipe.backbone.loss == "bce"
    assert recipe.alignment.network.joint_dim == 128
    assert recipe.prompt.max_history == 10
    assert recipe.prompt.soft_token == "after"
    assert recipe.soft_tokens.num_candidates == 20
    assert recipe.cold_below == 1
    assert recipe.llm.published.name == "facebook/opt-6.7b"


def test_a_recipe_is_complete_when_it_is_written():
    written = tomllib.loads(dump_recipe(load_recipe("a-llmrec")))
    complete = load_recipe("a-llmrec").model_dump(mode="json", exclude_none=True)
    assert written == complete


# Round trips


def test_a_recipe_with_every_kind_of_value_comes_back(tmp_path):
    recipe = Recipe(
        name='a "quoted" \\ name\nof two lines\twith a tab, ünicode, 𝒳 and \x7f',
        seed=3,
        text=TextEncoderConfig(name="C:\\models\\new", revision=None, max_tokens=8),
        llm=LanguageModelChoice(chosen=LanguageModelConfig(name="x", revision="abc", dtype="bfloat16")),
        soft_tokens=SoftTokensStageConfig(sample=None, positions="every"),
        evaluation=EvaluationConfig(protocols=("sampled-99",), splits=("test",), normalize="mean"),
    )
    assert again(tmp_path, recipe) == recipe


def test_values_that_are_none_come_back_as_none(tmp_path):
    recipe = load_recipe("a-llmrec", ("soft_tokens.sample=5", "text.revision=abc"))
    none = load_recipe(write(tmp_path, dump_recipe(recipe)), ("soft_tokens.sample=none", "text.revision=none"))
    assert none.soft_tokens.sample is None
    assert none.text.revision is None
    assert again(tmp_path, none) == none


@given(
    name=st.text(min_size=1).filter(lambda text: text.isascii() or "\ud800" not in text),
    learning_rate=st.floats(min_value=1e-300, max_value=1e300),
    penalty=st.floats(min_value=0, allow_infinity=False),
)
def test_any_name_and_number_comes_back(tmp_path_factory, name, learning_rate, penalty):
    changes = (f"backbone.loop.learning_rate={learning_rate!r}", f"backbone.loop.weight_decay={penalty!r}")
    recipe = load_recipe("a-llmrec", changes).model_copy(update={"name": name})
    assert recipe.backbone.loop.learning_rate == learning_rate
    assert again(tmp_path_factory.getbasetemp(), recipe) == recipe


# Changes on the command line


@pytest.mark.parametrize(
    ("change", "read", "expected"),
    [
        ("seed=7", lambda recipe: recipe.seed, 7),
        (" seed = 7 ", lambda recipe: recipe.seed, 7),
        ("backbone.loop.epochs=2", lambda recipe: recipe.backbone.loop.epochs, 2),
        ("backbone.loop.learning_rate=1e-4", lambda recipe: recipe.backbone.loop.learning_rate, 1e-4),
        ("backbone.loop.betas=[0.5, 0.6]", lambda recipe: recipe.backbone.loop.betas, (0.5, 0.6)),
        ("soft_tokens.positions=every", lambda recipe: recipe.soft_tokens.positions, "every"),
        ('soft_tokens.positions="every"', lambda recipe: recipe.soft_tokens.positions, "every"),
        ("soft_tokens.soft_tokens.is_scaled=false", lambda recipe: recipe.soft_tokens.soft_tokens.is_scaled, False),
        ("text.name=some/model-with=sign", lambda recipe: recipe.text.name, "some/model-with=sign"),
        ("text.name=/a path/with spaces", lambda recipe: recipe.text.name, "/a path/with spaces"),
        ('evaluation.protocols=["full"]', lambda recipe: recipe.evaluation.protocols, ("full",)),
    ],
)
def test_a_key_is_changed(change, read, expected):
    recipe = load_recipe("a-llmrec", (change,))
    assert read(recipe) == expected
    assert recipe.alignment == load_recipe("a-llmrec").alignment


def test_none_is_the_word_where_a_key_knows_it():
    changes = ("refit=none", "prompt.soft_token=none", "alignment.network.matching=none", "text.revision=none")
    recipe = load_recipe("a-llmrec", changes)
    assert (recipe.refit, recipe.prompt.soft_token, recipe.alignment.network.matching) == ("none",) * 3
    assert recipe.text.revision is None


def test_later_changes_win_and_tables_keep_their_other_keys():
    recipe = load_recipe("quickstart", ("backbone.loop.epochs=3", "seed=1", "seed=2"))
    before = load_recipe("quickstart")
    assert (recipe.seed, recipe.backbone.loop.epochs) == (2, 3)
    assert recipe.backbone.loop.patience_steps == before.backbone.loop.patience_steps
    assert recipe.backbone.model == before.backbone.model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", r"got --set 'seed', expected key=value"),
        ("=3", r"got --set '=3', expected key=value"),
        ("sead=1", r"unknown key 'sead' in Recipe: did you mean 'seed'\?"),
        ("backbone.loop.epoch=1", r"unknown key 'epoch' in LoopConfig: did you mean 'epochs'\?"),
        ("prompt.max_histori=1", r"unknown key 'max_histori' in PromptConfig: did you mean 'max_history'\?"),
        ("seed.x=1", r"unknown key|seed: .*integer"),
        ("backbone.loop.epochs=0", r"epochs: .*greater than or equal to 1"),
        ("backbone.loop.epochs=many", r"epochs: .*integer.*\(got 'many'\)"),
        ("backbone.loss=mse", r"loss: .*'bce'"),
        ("backbone=3", r"backbone: "),
        ("evaluation.protocols=[]", r"protocols: .*at least 1"),
    ],
)
def test_a_bad_change_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        load_recipe("a-llmrec", (change,))


def test_a_message_says_the_place_and_the_value_and_no_more():
    with pytest.raises(InputError) as caught:
        load_recipe("a-llmrec", ("backbone.loop.epochs=0",))
    expected = (
        "Recipe.backbone: BackboneConfig.loop: LoopConfig.epochs: Input should be greater than or equal to 1 (got 0)"
    )
    assert str(caught.value) == expected


def test_a_change_is_written_as_it_is_advised():
    with refused("--set {}: {} is a value, not a table, so it has no key {}"):
        load_recipe("a-llmrec", ("seed=1", "seed.x=1"))
    assert load_recipe("a-llmrec", ("seed=1",)).seed == 1
    with refused("got --set {}, expected key=value such as backbone.loop.epochs=20") as caught:
        load_recipe("a-llmrec", ("epochs",))
    assert load_recipe("a-llmrec", (str(caught.value).partition("such as ")[2],)).backbone.loop.epochs == 20


# Files


def test_a_recipe_file_is_found_by_path(tmp_path):
    path = write(tmp_path, 'name = "mine"\n[prompt]\nmax_history = 4\n')
    assert load_recipe(path).prompt.max_history == 4
    (tmp_path / "bare").write_text('name = "mine"\n', encoding="utf-8")
    assert load_recipe(str(tmp_path / "bare")).name == "mine"


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"own.toml is no TOML: .*line 1"):
        load_recipe(write(tmp_path, "seed = = 1"))
    with pytest.raises(InputError, match=r"unknown key 'promt' in Recipe: did you mean 'prompt'\?"):
        load_recipe(write(tmp_path, "[promt]\nmax_history = 4\n"))
    with refused("no such recipe file: {}. Recipes by name: {}") as caught:
        load_recipe(str(tmp_path / "nothing.toml"))
    for name in str(caught.value).partition("Recipes by name: ")[2].split(", "):
        assert load_recipe(name).name == name
    (tmp_path / "latin.toml").write_bytes('name = "ü"'.encode("latin-1"))
    with refused("the recipe {} is no UTF-8 text: {}. Save it as UTF-8."):
        load_recipe(str(tmp_path / "latin.toml"))
    (tmp_path / "latin.toml").write_bytes('name = "ü"'.encode())
    assert load_recipe(str(tmp_path / "latin.toml")).name == "ü"


def test_an_unknown_recipe_names_the_nearest(tmp_path):
    with refused("unknown recipe {}: {}. A path to a .toml file does too.") as caught:
        load_recipe("a-llmrek")
    advises(str(caught.value), "did you mean {}? {}")
    assert load_recipe(str(caught.value).partition("did you mean '")[2].partition("'")[0]).name == "a-llmrec"
    assert load_recipe(write(tmp_path, 'name = "own"')).name == "own"


def test_numbers_that_are_no_numbers_are_refused():
    for value in ("nan", "-1.0", "0.0"):
        with pytest.raises(InputError, match="learning_rate"):
            load_recipe("a-llmrec", (f"backbone.loop.learning_rate={value}",))
    assert math.isfinite(load_recipe("a-llmrec").backbone.loop.learning_rate)


def test_a_changed_recipe_differs_in_the_named_keys_alone():
    recipe = load_recipe("a-llmrec")
    changed = recipe.changed(seed=3, alignment__loop__epochs=2)
    assert (changed.seed, changed.alignment.loop.epochs) == (3, 2)
    assert changed != recipe == changed.changed(seed=recipe.seed, alignment__loop__epochs=recipe.alignment.loop.epochs)
    for unknown in ("sead", "alignment__lop__epochs", "alignment__loop__epoch"):
        with pytest.raises(AttributeError):
            recipe.changed(**{unknown: 1})
