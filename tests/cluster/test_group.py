"""One training in several processes: gradients, checkpoints and results as of one."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tests.killing import Killed
from tests.remedies import refused
from tests.tiny import save_tiny

from allrec import seeds
from allrec.backbones.registry import make_backbone
from allrec.config import load_recipe
from allrec.data import PrepareConfig, SimulationConfig, load_dataset, prepare, simulate
from allrec.errors import InputError
from allrec.files import read_json
from allrec.parallel import torch_threads
from allrec.recommender import AllRec
from allrec.training.distributed import Place, Workers, share_rows
from cluster.training_work import QUIET, STILL, Alone, Die, Each, Train
from worlds import make_world

BCE, SAMPLED = "backbone.loss=bce", "backbone.loss=sampled-softmax"
INFONCE = "alignment.network.matching=infonce"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    simulate(folder / "source", SimulationConfig(num_users=80, num_items=60, mean_interactions=6))
    prepare(folder / "source", folder / "dataset", config=PrepareConfig(name="world"))
    return folder / "dataset"


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("llm"))


def trained(work, group=None):
    work.out.mkdir(exist_ok=True)
    work() if group is None else group.run(work)
    return work.out


def gradients(out):
    """What the checkpoint knows of them: Adam's running means, of all steps."""
    tensors = load_file(out / "checkpoint.safetensors")
    return {name: value for name, value in tensors.items() if name.endswith("exp_avg")}


STILL_ONES = {
    "softmax": ("backbone", (f"backbone.{STILL}",)),
    "bce": ("backbone", (BCE, f"backbone.{STILL}")),
    "sampled": ("backbone", (SAMPLED, f"backbone.{STILL}")),
    "mse": ("alignment", (f"alignment.{STILL}",)),
    "infonce": ("alignment", (INFONCE, f"alignment.{STILL}")),
    # Of two workers one has no row.
    "single": ("backbone", (BCE, "backbone.tokens_per_batch=1", "backbone.loop.epochs=1", f"backbone.{STILL}")),
}
SPLIT = "backbone.split_table_above=1"
"""The table of items lies over the workers."""
STILL_ONES |= {
    "split": ("backbone", ("backbone.loss=softmax", SPLIT, f"backbone.{STILL}")),
    "split bce": ("backbone", (BCE, SPLIT, f"backbone.{STILL}")),
    "split sampled": ("backbone", (SAMPLED, SPLIT, "backbone.loop.gradient_clip=0.1", f"backbone.{STILL}")),
}
BEHIND = ('prompt.soft_token="none"', "prompt.user_place=last", "soft_tokens.positions=every")
STAGE_TWO = {
    "paper": (),
    "behind": (*BEHIND, "soft_tokens.warm_up.towards=titles"),
    "lora": (*BEHIND, "llm.tuning=lora", "llm.lora.rank=2"),
}
READ_OUT = {
    "read": (),
    # Of two workers one has no row, and a batch of one has no pair.
    "alone": ("readout.batch_tokens=1", "readout.loop.epochs=1"),
    "drawn": ("readout.sampled_softmax_above=5", "readout.num_negatives=20", "readout.soft_tokens=trained"),
}
STILL_ONES |= {name: ("readout", (f"readout.{STILL}", *sets)) for name, sets in READ_OUT.items()}
STILL_ONES |= {name: ("language model", (f"soft_tokens.{STILL}", *sets)) for name, sets in STAGE_TWO.items()}
DROPOUT = ("backbone.model.dropout=0.2",)
SPLIT_ONES = {"bce": (BCE, SPLIT, *DROPOUT), "sampled": (SAMPLED, SPLIT, *DROPOUT)}


@pytest.fixture(scope="module")
def by_two(dataset, llm, tmp_path_factory):
    """What two workers make of each: they are started once for all."""
    out = tmp_path_factory.mktemp("two")
    works = [Train(stage, dataset, out / name, sets, llm=llm) for name, (stage, sets) in STILL_ONES.items()]
    works += [Train("backbone", dataset, out / name, DROPOUT) for name in ("first", "second")]
    works.append(Train("backbone", dataset, out / "plain"))
    works.append(Train("readout", dataset, out / "heads", llm=llm))
    works += [Train("backbone", dataset, out / f"whole {name}", sets) for name, sets in SPLIT_ONES.items()]
    for work in works:
        work.out.mkdir()
    Workers(2).run(Each(tuple(works)))
    return out


def losses_of(out):
    return [float(value) for value in (out / "losses.txt").read_text().split()]


@pytest.mark.parametrize("name", STILL_ONES)
def test_gradients_of_two_workers_are_those_of_one(dataset, llm, tmp_path, by_two, name):
    stage, sets = STILL_ONES[name]
    one, two = gradients(trained(Train(stage, dataset, tmp_path / "one", sets, llm=llm))), gradients(by_two / name)
    assert one.keys() == two.keys()
    assert max(value.abs().max().item() for value in one.values()) > 1e-3
    for parameter, value in one.items():
        assert (two[parameter] - value).abs().max().item() <= 1e-6, parameter
    assert losses_of(by_two / name) == pytest.approx(losses_of(tmp_path / "one"), rel=1e-6)


def test_a_read_out_goes_on_with_another_number_of_workers(dataset, llm, tmp_path, by_two):
    whole = trained(Train("readout", dataset, tmp_path / "whole", llm=llm))
    with pytest.raises(Killed):
        trained(Train("readout", dataset, tmp_path / "killed", llm=llm, kill_at=4))
    resumed = trained(Train("readout", dataset, tmp_path / "killed", llm=llm), Workers(2))
    assert losses_of(resumed) == pytest.approx(losses_of(whole), rel=1e-5)
    for out in (resumed, by_two / "heads"):
        one, other = (load_file(path / "model.safetensors") for path in (whole, out))
        apart, size = (
            torch.cat([value.ravel() for value in part.values()]).norm() for part in (minus(one, other), one)
        )
        assert apart < 1e-3 * size


@pytest.mark.parametrize(("before", "after"), [(2, None), (None, 3)])
def test_another_number_of_workers_goes_on_with_a_checkpoint(dataset, tmp_path, before, after):
    whole = trained(Train("backbone", dataset, tmp_path / "whole"))
    groups = [None if size is None else Workers(size) for size in (before, after)]
    with pytest.raises(Killed):
        trained(Train("backbone", dataset, tmp_path / "killed", kill_at=4), groups[0])
    assert (tmp_path / "killed" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    resumed = trained(Train("backbone", dataset, tmp_path / "killed"), groups[1])
    assert losses_of(resumed) == pytest.approx(losses_of(whole), rel=1e-5)
    assert distance(resumed, whole) < 1e-2


@pytest.mark.parametrize("name", SPLIT_ONES)
def test_a_split_table_is_trained_to_the_bytes_of_a_whole_one(dataset, tmp_path, by_two, name):
    # As many threads as a worker has, since sums depend on it.
    with torch_threads(1):
        one = trained(Train("backbone", dataset, tmp_path / "one", SPLIT_ONES[name]))
    for file in ("model.safetensors", "checkpoint.safetensors"):
        assert (by_two / f"whole {name}" / file).read_bytes() == (one / file).read_bytes()


@pytest.mark.parametrize(("before", "after"), [(2, None), (2, 3), (None, 2)])
def test_another_number_of_workers_goes_on_with_a_split_table(dataset, tmp_path, by_two, before, after):
    sets, groups = SPLIT_ONES["bce"], [None if size is None else Workers(size) for size in (before, after)]
    with pytest.raises(Killed), torch_threads(1):
        trained(Train("backbone", dataset, tmp_path / "killed", sets, kill_at=4), groups[0])
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    with torch_threads(1):
        resumed = trained(Train("backbone", dataset, tmp_path / "killed", sets), groups[1])
    expected = (by_two / "whole bce" / "model.safetensors").read_bytes()
    assert (resumed / "model.safetensors").read_bytes() == expected


def minus(one, other):
    return {name: one[name] - other[name] for name in one}


def distance(one, other):
    """How far two trainings ended from each other, as a share of how far they have come from the first weights."""
    models = [load_file(out / "model.safetensors") for out in (one, other)]
    config = load_recipe("a-llmrec", QUIET).backbone.model
    first = make_backbone(len(models[0]["item_table"]), config, seeds.torch_generator(3, "backbone", "weights"))
    start = first.state_dict()
    apart = sum((models[0][name] - value).square().sum() for name, value in models[1].items())
    moved = sum((value - start[name]).square().sum() for name, value in models[1].items())
    return float((apart / moved).sqrt())


def test_the_same_number_of_workers_gives_the_same_bytes(by_two):
    first, second = ((by_two / name / "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    assert first != (by_two / "plain" / "model.safetensors").read_bytes()


def test_torchrun_trains_the_same_function(dataset, tmp_path, by_two):
    work = Train("backbone", dataset, tmp_path / "torchrun")
    work.out.mkdir()
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom allrec.training.distributed import joined\n"
        f"from cluster.training_work import Train\nwith joined():\n    Train('backbone', Path({str(dataset)!r}), "
        f"Path({str(work.out)!r}))()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = (by_two / "plain" / "model.safetensors").read_bytes()
    assert (work.out / "model.safetensors").read_bytes() == expected


def test_a_workers_error_is_raised_and_a_death_is_said():
    with pytest.raises(InputError, match="no such column"):
        Workers(2).run(Die(InputError("no such column")))
    with refused("for want of memory. Give fewer --workers, and go on with --resume.") as caught:
        Workers(2).run(Die())
    assert "a training worker died (exit codes" in str(caught.value)
    # Fewer go on where more stopped: see test_another_number_of_workers_goes_on_with_a_checkpoint.
    Workers(1).run(Alone())
    with pytest.raises(InputError, match="got 0 workers"):
        Workers(0)


@pytest.mark.parametrize(("rows", "size"), [(7, 3), (3, 3), (2, 3), (0, 2), (1, 1)])
def test_shares_cover_a_batch_once_and_weigh_one_in_all(rows, size):
    shares = [share_rows(rows, Place(rank, size)) for rank in range(size)]
    held = [row for part, weight in shares if weight for row in range(rows)[part]]
    assert held == list(range(rows))
    assert sum(weight for _, weight in shares) == pytest.approx(1 if rows else 0)
    assert all(part.stop > part.start for part, _ in shares)


def test_a_run_whose_workers_share_its_stages_is_that_of_one_process(tmp_path):
    dataset, _, recipe = make_world(tmp_path, ("llm.enabled=false", *QUIET))
    ends = dict[str, dict[str, float]]()
    for name, group in (("one", None), ("two", Workers(2))):
        seen = ends[name] = {}
        given = {"recipe": recipe, "cache": tmp_path / "cache", "is_evaluated": False, "group": group}
        given["observer"] = lambda stage, share, values, seen=seen: seen.update({stage: (share, values.get("step"))})
        AllRec.train(dataset, run=tmp_path / name, **given)
    assert ends["two"] == {stage: ends["one"][stage] for stage in ("backbone", "alignment")}
    assert not (tmp_path / "two" / "progress.json").exists()
    one, two = (AllRec.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert two.run.state() == one.run.state()
    for stage in ("backbone", "alignment"):
        reports = [read_json(system.run.verified_folder(stage) / "training.json") for system in (one, two)]
        assert reports[1]["losses"] == pytest.approx(reports[0]["losses"], rel=1e-3)
        assert reports[1]["steps"] == reports[0]["steps"] > 0


def test_a_data_set_that_was_changed_in_memory_is_trained_in_one_process(dataset, tmp_path):
    changed = replace(load_dataset(dataset), scenario="few-shot-1")
    with pytest.raises(InputError, match="was changed for scenario few-shot-1"):
        AllRec.train(changed, run=tmp_path, recipe=load_recipe("a-llmrec", ("llm.enabled=false",)), group=Workers(2))
