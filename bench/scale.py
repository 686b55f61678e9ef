"""What every stage costs as the data grow: seconds, peak memory, and growth over linear growth.

Each stage and size runs in a process of its own, whole: an epoch, the ranks of a split. An average of ten interactions
a user and ten an item.

    python bench/scale.py --interactions 100000 1000000
    python bench/scale.py --interactions 1000000 10000000 --threads 2
"""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch

from allrec.alignment.model import AlignmentConfig
from allrec.alignment.training import AlignmentStageConfig, train_alignment
from allrec.backbones.base import freeze
from allrec.backbones.registry import make_backbone
from allrec.backbones.training import BackboneConfig, backbone_ranks, train_backbone
from allrec.config import load_recipe
from allrec.data import load_dataset, prepare
from allrec.evaluation.evaluate import EvaluationConfig
from allrec.evaluation.segments import sample_rows
from allrec.parallel import OnProgress
from measure import CLOCKS, in_own_process, options, show, start
from simulated import write_interactions

Stage = TypeVar("Stage", BackboneConfig, AlignmentStageConfig)
TEXT_DIM = 384
LARGE_BATCH = 32_768
"""Positions of a batch of the backbone, so that the optimizer's pass over every item is made seldom."""


def preparation(folder: str, clock: str) -> float:
    """Seconds of ``prepare``."""
    begun = CLOCKS[clock]()
    prepare(Path(folder) / "interactions.parquet", Path(folder) / "dataset")
    return CLOCKS[clock]() - begun


def loading(folder: str, clock: str) -> float:
    """Seconds of ``load_dataset``."""
    begun = CLOCKS[clock]()
    load_dataset(Path(folder) / "dataset")
    return CLOCKS[clock]() - begun


def backbone(folder: str, clock: str) -> float:
    """Seconds of an epoch of the 50 wide SASRec."""
    dataset = load_dataset(Path(folder) / "dataset")
    config = one_epoch(load_recipe("a-llmrec").backbone.model_copy(update={"tokens_per_batch": LARGE_BATCH}))
    return seconds_of_steps(lambda on_progress: train_backbone(dataset, config, seed=0, on_progress=on_progress), clock)


def alignment(folder: str, clock: str) -> float:
    """Seconds of an epoch of stage 1."""
    dataset = load_dataset(Path(folder) / "dataset")
    model = freeze(make_backbone(dataset.num_items, load_recipe("a-llmrec").backbone.model, torch.Generator()))
    texts = torch.randn(dataset.num_items, TEXT_DIM)
    config = one_epoch(AlignmentStageConfig(network=AlignmentConfig(), batch_size=4096))

    def train(on_progress: OnProgress) -> None:
        train_alignment(dataset, model, texts, config, seed=0, on_progress=on_progress)

    return seconds_of_steps(train, clock)


def one_epoch(config: Stage) -> Stage:
    """The same stage, trained for one epoch."""
    return config.model_copy(update={"loop": config.loop.model_copy(update={"epochs": 1})})


def seconds_of_steps(train: Callable[[OnProgress], object], clock: str) -> float:
    """Seconds of all steps of a training; what it does before the first and after the last does not count."""
    times: list[float] = []
    train(lambda step, values: times.append(CLOCKS[clock]()))
    if len(times) < 2:
        raise ValueError("an epoch is one step, expected two at least. Ask for more --interactions.")
    # The first step's beginning is not told, so it is taken to last as long as the others.
    return (times[-1] - times[0]) * len(times) / (len(times) - 1)


def retrieval(folder: str, clock: str) -> float:
    """Seconds to rank the whole catalogue for as many users as a recipe does by default."""
    dataset = load_dataset(Path(folder) / "dataset")
    model = freeze(make_backbone(dataset.num_items, load_recipe("a-llmrec").backbone.model, torch.Generator()))
    targets = dataset.targets["test"]
    rows = sample_rows(len(targets), EvaluationConfig().catalogue_users, 0)
    begun = CLOCKS[clock]()
    backbone_ranks(model, dataset, targets.take(rows), "full")
    return CLOCKS[clock]() - begun


STAGES = {"prepare": preparation, "load": loading, "backbone, an epoch": backbone, "stage 1, an epoch": alignment,
          "evaluation, full": retrieval}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measures and prints; returns growth over linear growth by stage, of the largest size over the smallest."""
    parser = options(__doc__ or "", repeats=1)
    parser.add_argument("--interactions", type=int, nargs="+", default=[100_000, 1_000_000])
    given = start(parser, arguments)
    sizes, rows, growth = given.interactions, [], {}
    with TemporaryDirectory() as folder:
        for size in sizes:
            (Path(folder) / str(size)).mkdir()
            source = Path(folder) / str(size) / "interactions.parquet"
            write_interactions(source, size, size // 10, size // 10, given.seed)
        for name, stage in STAGES.items():
            asked = (given.threads, stage, given.clock)
            # Sizes by turns, as what else a machine does would be taken for growth.
            turns = [
                [in_own_process(_with_threads, *asked, str(Path(folder) / str(size))) for size in sizes]
                for _ in range(given.repeats)
            ]
            measured = [
                [statistics.median(values) for values in zip(*size, strict=True)] for size in zip(*turns, strict=True)
            ]
            growth[name] = measured[-1][0] / measured[0][0] / (sizes[-1] / sizes[0])
            rows.append([growth[name], name, *(value for pair in measured for value in pair)])
    costs = [f"{size:,}: {unit}" for size in sizes for unit in ("s", "peak GiB")]
    show("growth over linear growth, asked for at most 1.2", given, ["ratio", "stage", *costs], rows)
    return growth


def _with_threads(threads: int, stage: Callable[[str, str], float], clock: str, folder: str) -> float:
    torch.set_num_threads(threads)
    return stage(folder, clock)


if __name__ == "__main__":
    main()
