"""Models that packages carry: found without running them, checked, converted once; and SmolLM2 itself."""

import struct
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from allrec.config import choose_language_model, is_within_reach, load_recipe, settled
from allrec.errors import InputError, Wording
from allrec.files import sha256_file
from allrec.llm import loading, packaged
from allrec.llm.language_model import LanguageModel
from allrec.llm.loading import LanguageModelConfig, local_folder
from allrec.llm.packaged import DEFAULT, PACKAGED, SOURCE, Packaged, converted, is_installed, models_cache
from allrec.llm.prompt import PromptBuilder, PromptConfig
from allrec.llm.soft_tokens import SoftTokens
from allrec.llm.title_scorer import TitleScorer, title_priors

CONTENT = b"GGUF and some weights"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A model of two packages whose conversion writes what it was given."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    for part, content in (("1", CONTENT[:9]), ("2", CONTENT[9:])):
        (folder / f"tiny.gguf.part{part}").write_bytes(content)

    def distribution(name):
        if name == "absent":
            raise PackageNotFoundError(name)
        file = Path(f"tiny.gguf.part{name[-1]}")
        return SimpleNamespace(files=[file, Path("code.py")], locate_file=lambda found: folder / found)

    def convert(target, name):
        (target / "model.safetensors").write_bytes((target / "model.gguf").read_bytes())

    (tmp_path / "whole").write_bytes(CONTENT)
    sha256 = sha256_file(tmp_path / "whole")
    monkeypatch.setattr(packaged, "distribution", distribution)
    monkeypatch.setattr(packaged, "_convert", convert)
    monkeypatch.setitem(PACKAGED, "tiny", Packaged(("part-1", "part-2"), sha256, 1, "MIT", "make tiny"))
    monkeypatch.setitem(PACKAGED, "missing", Packaged(("absent",), sha256, 1, "MIT", "make missing"))
    monkeypatch.setenv("ALLREC_CACHE", str(tmp_path / "cache"))
    return folder


def test_parts_are_joined_and_converted_once(made, monkeypatch):
    folder = converted("tiny")
    assert folder.parent == models_cache()
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", SOURCE]
    monkeypatch.setattr(packaged, "_convert", lambda *_: pytest.fail("converted twice"))
    assert converted("tiny") == folder == local_folder("tiny")


def test_a_damaged_part_is_refused_and_leaves_nothing(made, tmp_path):
    (made / "tiny.gguf.part2").write_bytes(b"something else")
    with pytest.raises(InputError, match=r"tiny is damaged: its sha256 is .* make tiny"):
        converted("tiny")
    assert not any((tmp_path / "cache" / "models").iterdir())


def test_a_model_that_is_not_installed_is_refused_with_its_remedy(made):
    assert is_installed("tiny")
    assert not is_installed("missing")
    with pytest.raises(InputError, match=r"missing is not installed: no package absent\. Install it .*: make missing"):
        converted("missing")


def test_a_package_without_its_file_is_refused(made):
    (made / "tiny.gguf.part1").unlink()
    with pytest.raises(InputError, match="its packages hold no GGUF file"):
        converted("tiny")


def test_a_killed_conversion_is_made_again(made, monkeypatch):
    def killed(target, name):
        raise KeyboardInterrupt

    honest = packaged._convert
    monkeypatch.setattr(packaged, "_convert", killed)
    with pytest.raises(KeyboardInterrupt):
        converted("tiny")
    monkeypatch.setattr(packaged, "_convert", honest)
    assert (converted("tiny") / "model.safetensors").is_file()


def test_a_conversion_that_lost_bytes_is_made_again(made):
    weights = converted("tiny") / "model.safetensors"
    weights.write_bytes(CONTENT[:5])
    assert (converted("tiny") / "model.safetensors").read_bytes() == CONTENT
    weights.unlink()
    assert (converted("tiny") / "model.safetensors").read_bytes() == CONTENT


@pytest.mark.parametrize("length", [4, 10, 24, 40])
def test_a_gguf_file_that_is_cut_off_is_refused(tmp_path, monkeypatch, length):
    monkeypatch.setenv("ALLREC_CACHE", str(tmp_path / "cache"))
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + struct.pack("<Q", 20) + b"general.architecture"
    (tmp_path / "cut.gguf").write_bytes(header[:length])
    with pytest.raises(InputError, match=r"cut\.gguf cannot be read: .*; cut off, damaged"):
        converted(str(tmp_path / "cut.gguf"))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name", ["/models/smollm2", "~/models/one.gguf", "models/a/b/c", "./here", "a model"])
def test_a_path_of_another_machine_is_out_of_reach(name):
    assert not is_within_reach(LanguageModelConfig(name=name))


def test_the_precision_alone_is_set_for_whichever_model_is_chosen():
    recipe = load_recipe("a-llmrec", ("llm.dtype=float32",))
    assert recipe.llm.published.dtype == "float32"
    assert recipe.llm.published.name == "facebook/opt-6.7b"
    assert recipe.llm.published.revision == load_recipe("a-llmrec").llm.published.revision
    assert choose_language_model(recipe, "some/model").llm.chosen.dtype == "float32"


def test_a_gguf_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"pickle")
    with pytest.raises(InputError, match=r"model\.gguf is no GGUF file: it does not begin with GGUF"):
        converted(str(tmp_path / "model.gguf"))
    with pytest.raises(InputError, match=r"no file .*nowhere\.gguf"):
        converted(str(tmp_path / "nowhere.gguf"))


def test_a_gguf_file_that_transformers_does_not_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ALLREC_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(InputError, match=r"the GGUF file .*model\.gguf cannot be read"):
        converted(str(tmp_path / "model.gguf"))
    assert not any((tmp_path / "cache" / "models").iterdir())


def test_the_default_stands_in_where_the_recipes_own_is_not_installed(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    recipe = load_recipe("opt-13b")
    monkeypatch.setattr("allrec.config.is_installed", lambda name: False)
    assert choose_language_model(recipe, None).llm.chosen.name == DEFAULT
    monkeypatch.setattr("allrec.config.is_installed", lambda name: True)
    assert choose_language_model(recipe, None).llm.chosen.name == "gemma-3-270m"


@pytest.mark.parametrize(("num_weights", "lists"), [(134_515_008, False), (6_658_473_984, True)])
def test_a_run_says_its_precision_and_whether_it_lists_candidates(num_weights, lists):
    recipe = settled(choose_language_model(load_recipe("a-llmrec"), DEFAULT), "bfloat16", num_weights)
    assert (recipe.llm.chosen.dtype, recipe.prompt.lists_candidates) == ("bfloat16", lists)
    asked = load_recipe("a-llmrec", (f"prompt.lists_candidates={str(not lists).lower()}",))
    assert settled(asked, "float32", num_weights).prompt.lists_candidates is not lists


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, "bfloat16"), (0.99, "float32"), (3.0, "float32")])
def test_bfloat16_is_taken_where_it_is_clearly_faster(monkeypatch, ratio, expected):
    clock, cost = [0.0], {torch.float32: 1.0, torch.bfloat16: ratio}

    def linear(inputs, weight):
        clock[0] += cost[inputs.dtype]

    monkeypatch.setattr(loading.functional, "linear", linear)
    monkeypatch.setattr(loading.time, "perf_counter", lambda: clock[0])
    assert HONEST_TRIAL("cpu") == expected
    assert HONEST_TRIAL("cuda") == "bfloat16"


HONEST_TRIAL = loading.faster_dtype.__wrapped__


@pytest.fixture(scope="module")
def smollm2():
    return LanguageModel.load(LanguageModelConfig(name=DEFAULT, dtype="float32"))


@pytest.mark.model
def test_smollm2_knows_words(smollm2):
    """What fits is likelier than what does not, whatever the order of the titles."""
    titles = ["Red nail polish", "Clear top coat for nails", "Cordless drill with two batteries", "Garden hose, 15 m"]
    config = PromptConfig(soft_token="none", has_user=False, lists_candidates=False)
    builder = PromptBuilder.of(smollm2, titles, Wording(), config)
    priors = title_priors(smollm2, builder, np.arange(4), tokens_per_batch=4096)
    scorer = TitleScorer(
        smollm2, builder, SoftTokens(1, 1, smollm2.dim), torch.zeros(4, 1), lambda: priors,
        seed=0, normalize="pmi", tokens_per_batch=4096,
    )  # fmt: skip
    (scores,) = scorer.score(torch.zeros(1, 1), [np.array([0])], np.array([[3, 1, 2]]))
    assert scores.argmax() == 1
    assert scores[1] - max(scores[0], scores[2]) > 2


@pytest.mark.model
def test_smollm2_is_loaded_as_it_was_packed(smollm2):
    assert smollm2.fingerprint["sha256"] == PACKAGED[DEFAULT].sha256
    assert (smollm2.num_weights, smollm2.dim, smollm2.vocabulary) == (134_515_008, 576, 49_152)
    assert smollm2.can_pack
    text = ' "Rose soap", "Crème brûlée <|im_end|>"'
    assert smollm2.decode(smollm2.encode([text])) == [text]


@pytest.mark.model
def test_precisions_of_smollm2_agree(smollm2):
    """Measured once over titles: log P moves by .034 on average."""
    half = LanguageModel.load(LanguageModelConfig(name=DEFAULT, dtype="bfloat16"))
    ids = torch.tensor(smollm2.encode([" This user has bought a red nail polish and a clear top coat."]))
    with torch.no_grad():
        whole, rounded = (model.logits(model.hidden(model.embed(ids))).log_softmax(-1) for model in (smollm2, half))
    own = ids[0, 1:, None]
    losses = [values[0, :-1].gather(1, own).mean().item() for values in (whole, rounded)]
    assert losses[0] == pytest.approx(losses[1], abs=0.1)
