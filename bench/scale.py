"""What every stage costs as the data grow: seconds, peak memory, and growth over linear growth.

Each stage and size runs in a process of its own. Training and evaluation are measured in part and multiplied up: so
many steps of an epoch, so many users. An average of ten interactions a user and ten an item.

    python bench/scale.py --interactions 100000 1000000
    python bench/scale.py --interactions 1000000 10000000 --clock wall
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from allrec.config import EvaluationConfig, load_recipe
from allrec.data import load_dataset, prepare
from allrec.data.dataset import Targets
from allrec.models.alignment import AlignmentConfig
from allrec.models.backbones.base import freeze
from allrec.models.backbones.registry import make_backbone
from allrec.training.alignment import AlignmentStageConfig, train_alignment
from allrec.training.backbone import TrainingBatches, backbone_ranks, train_backbone
from allrec.training.examples import training_examples
from measure import CLOCKS, OnStep, in_own_process, options, seconds_a_step, show, start
from simulated import write_interactions

TEXT_DIM = 384
LARGE_BATCH = 16_384
"""Positions of a batch of the backbone, so that the optimizer's pass over every item is made seldom."""
USERS = 512
"""Users whose ranks are measured, times ``--part``: as many as two threads rank at one time."""


def preparation(folder: str, part: int, clock: str) -> float:
    """Seconds of ``prepare``."""
    begun = CLOCKS[clock]()
    prepare(Path(folder) / "interactions.parquet", Path(folder) / "dataset")
    return CLOCKS[clock]() - begun


def loading(folder: str, part: int, clock: str) -> float:
    """Seconds of ``load_dataset``."""
    begun = CLOCKS[clock]()
    load_dataset(Path(folder) / "dataset")
    return CLOCKS[clock]() - begun


def backbone(folder: str, part: int, clock: str) -> float:
    """Seconds of an epoch of the 50 wide SASRec, from some of its steps."""
    dataset = load_dataset(Path(folder) / "dataset")
    config = load_recipe("a-llmrec").backbone.model_copy(update={"tokens_per_batch": LARGE_BATCH})
    steps = len(TrainingBatches(dataset, config, 0, "cpu")(0))
    return steps * seconds_a_step(lambda on_step: train_backbone(dataset, config, seed=0, on_step=on_step), part, clock)


def alignment(folder: str, part: int, clock: str) -> float:
    """Seconds of an epoch of stage 1, from some of its steps."""
    dataset = load_dataset(Path(folder) / "dataset")
    model = freeze(make_backbone(dataset.num_items, load_recipe("a-llmrec").backbone.model, torch.Generator()))
    texts = torch.randn(dataset.num_items, TEXT_DIM)
    config = AlignmentStageConfig(network=AlignmentConfig(), batch_size=4096)
    steps = -(-len(training_examples(dataset, "every")) // config.batch_size)

    def train(on_step: OnStep) -> None:
        train_alignment(dataset, model, texts, config, seed=0, on_step=on_step)

    return steps * seconds_a_step(train, part, clock)


def retrieval(folder: str, part: int, clock: str) -> float:
    """Seconds to rank the whole catalogue for as many users as a recipe does by default, from some of them."""
    dataset = load_dataset(Path(folder) / "dataset")
    model = freeze(make_backbone(dataset.num_items, load_recipe("a-llmrec").backbone.model, torch.Generator()))
    targets = dataset.targets["test"]
    count = min(USERS * part, len(targets.users))
    some = Targets(targets.users[:count], targets.positions[:count], targets.items[:count], {})
    begun = CLOCKS[clock]()
    backbone_ranks(model, dataset, some, "full")
    return (CLOCKS[clock]() - begun) * min(len(targets.users), EvaluationConfig().catalogue_users) / count


STAGES = {"prepare": preparation, "load": loading, "backbone, an epoch": backbone, "stage 1, an epoch": alignment,
          "evaluation, full": retrieval}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measures and prints; returns growth over linear growth by stage, of the largest size over the smallest."""
    parser = options(__doc__ or "", repeats=1)
    parser.add_argument("--interactions", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--part", type=int, default=5, help="steps measured, and so many times 512 users")
    given = start(parser, arguments)
    sizes, rows, growth = given.interactions, [], {}
    with TemporaryDirectory() as folder:
        for size in sizes:
            (Path(folder) / str(size)).mkdir()
            source = Path(folder) / str(size) / "interactions.parquet"
            write_interactions(source, size, size // 10, size // 10, given.seed)
        for name, stage in STAGES.items():
            asked = (given.threads, stage, given.part, given.clock)
            measured = [in_own_process(_with_threads, *asked, str(Path(folder) / str(size))) for size in sizes]
            growth[name] = measured[-1][0] / measured[0][0] / (sizes[-1] / sizes[0])
            rows.append([growth[name], name, *(value for pair in measured for value in pair)])
    costs = [f"{size:,}: {unit}" for size in sizes for unit in ("s", "peak GiB")]
    show("growth over linear growth, asked for at most 1.2", given, ["ratio", "stage", *costs], rows)
    return growth


def _with_threads(threads: int, stage: Callable[[str, int, str], float], part: int, clock: str, folder: str) -> float:
    torch.set_num_threads(threads)
    return stage(folder, part, clock)


if __name__ == "__main__":
    main()
