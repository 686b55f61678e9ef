"""A language model in parts over two workers: scores, training and memory."""

import pytest
import torch
from safetensors.torch import load_file
from tests.remedies import refused
from tests.tiny import save_tiny
from transformers import AutoModelForCausalLM

from allrec.data import PrepareConfig, SimulationConfig, prepare, simulate
from allrec.errors import InputError
from allrec.files import read_json
from allrec.llm.adapter import LoraConfig
from allrec.llm.language_model import LanguageModel
from allrec.llm.loading import load_model
from allrec.llm.model_config import LanguageModelConfig
from allrec.training.distributed import Workers
from cluster.sharded_work import Score
from cluster.training_work import STILL, Each, Train

SHARDED = "llm.published.is_sharded=true"
KINDS = {"llama": {}, "tied": {"tie_word_embeddings": True}}
STAGES = {"language model": (f"soft_tokens.{STILL}",), "readout": (f"readout.{STILL}", "readout.soft_tokens=trained")}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    simulate(folder / "source", SimulationConfig(num_users=40, num_items=30, mean_interactions=6))
    prepare(folder / "source", folder / "dataset", config=PrepareConfig(name="world"))
    return folder / "dataset"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return {name: save_tiny(tmp_path_factory.mktemp(name), "llama", **options) for name, options in KINDS.items()}


def works_of(models, dataset, out):
    works = [Score(llm, dataset, out / name) for name, llm in models.items()]
    for stage, sets in STAGES.items():
        works.append(Train(stage, dataset, out / stage, (*sets, SHARDED), llm=models["tied"]))
    for work in works:
        work.out.mkdir(parents=True)
    return works


@pytest.fixture(scope="module")
def out(models, dataset, tmp_path_factory):
    """What one process makes of each, and two."""
    folder = tmp_path_factory.mktemp("out")
    for work in works_of(models, dataset, folder / "one"):
        work()
    Workers(2).run(Each(tuple(works_of(models, dataset, folder / "two"))))
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_log_probabilities_are_those_of_the_whole_model(out, name):
    whole = load_file(out / "one" / name / "scores-0.safetensors")["scores"]
    assert whole.std() > 0.1
    for rank in (0, 1):
        scores = load_file(out / "two" / name / f"scores-{rank}.safetensors")["scores"]
        assert ((scores - whole) / whole).abs().max() <= 1e-6


@pytest.mark.parametrize("name", KINDS)
def test_each_worker_holds_half_of_the_bytes(out, models, name):
    whole = read_json(out / "one" / name / "held-0.json")["bytes"]
    assert whole == AutoModelForCausalLM.from_pretrained(models[name]).num_parameters() * 4
    held = [read_json(out / "two" / name / f"held-{rank}.json")["bytes"] for rank in (0, 1)]
    assert max(held) < 0.51 * whole
    assert sum(held) >= whole


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_through_it_are_those_of_one_process(out, stage):
    one, two = (load_file(out / size / stage / "checkpoint.safetensors") for size in ("one", "two"))
    gradients = [name for name in one if name.endswith("exp_avg")]
    assert max(one[name].abs().max().item() for name in gradients) > 1e-3
    for name in gradients:
        # One process alone gave the read-out's, of which the largest is .42, up to 1.2e-6 apart from run to run.
        bound = max(1e-6, 5e-6 * one[name].abs().max().item())
        assert (two[name] - one[name]).abs().max().item() <= bound, name


@pytest.mark.parametrize("stage", STAGES)
def test_training_leaves_its_weights_as_they_were(out, models, stage):
    before = AutoModelForCausalLM.from_pretrained(models["tied"]).state_dict()
    after = load_file(out / "two" / stage / "llm.safetensors")
    assert after.keys() >= {name for name in before if name != "lm_head.weight"}
    for name, weight in after.items():
        assert torch.equal(weight, before[name]), name


def test_an_adapter_and_parts_are_refused_together(models, monkeypatch):
    pytest.importorskip("peft")
    config = LanguageModelConfig(name=str(models["llama"]), dtype="float32")
    llm = LanguageModel.load(config)
    with monkeypatch.context() as patched:
        patched.setattr(llm, "is_sharded", True)
        with refused("Leave the model as it is: --set llm.tuning=none; or whole: --set llm.published.is_sharded=false"):
            llm.adapted(LoraConfig(rank=2), seed=0)
    assert llm.adapted(LoraConfig(rank=2), seed=0).adapter is not None


@pytest.mark.parametrize("other", [{"weights": "8bit"}, {"is_compiled": True}])
def test_parts_are_of_whole_weights(other):
    with pytest.raises(InputError, match=r"got is_sharded with .*, expected whole and False"):
        load_model(None, LanguageModelConfig(is_sharded=True, **other), torch.device("cpu"))
