"""Stage 1, an epoch: embeddings looked up, against the text encoder inside the loop with batches of 32.

Neither side's epoch is run to its end where that takes too long: seconds a step are measured, after the first, and
multiplied by the steps of an epoch. What encoding every text once costs is shown beside it, from a measured part.

    python bench/stage_one.py --steps 3
"""

from collections.abc import Sequence

import torch

from allrec.alignment.text_encoder import TextEncoder, TextEncoderConfig
from allrec.alignment.training import AlignmentStageConfig, train_alignment
from allrec.backbones.base import freeze
from allrec.backbones.sasrec import SASRec, SASRecConfig
from allrec.data import Dataset
from allrec.parallel import OnProgress
from allrec.training.examples import training_examples
from measure import CLOCKS, dataset_of, options, seconds_a_step, show, start

PLAIN_BATCH = 32
ENCODED = 64


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measures and prints; returns the ratio."""
    parser = options(__doc__ or "", repeats=1)
    parser.add_argument("--steps", type=int, default=3, help="measured steps with the encoder in the loop")
    given = start(parser, arguments)
    dataset: Dataset = dataset_of(given)
    generator = torch.Generator().manual_seed(given.seed)
    backbone = freeze(SASRec(dataset.num_items, SASRecConfig(), generator))
    encoder = TextEncoder(TextEncoderConfig(), "cpu")
    texts = torch.randn(dataset.num_items, encoder.dim, generator=generator)
    num_examples = len(training_examples(dataset, "every"))
    known = [text for text in dataset.texts if text]
    begun = CLOCKS[given.clock]()
    encoder.encode(known[:: max(1, len(known) // ENCODED)][:ENCODED])
    once = (CLOCKS[given.clock]() - begun) * len(known) / min(ENCODED, len(known))

    def plain(on_progress: OnProgress) -> None:
        config = AlignmentStageConfig(batch_size=PLAIN_BATCH, tune_text=True)
        train_alignment(dataset, backbone, texts, config, seed=given.seed, encoder=encoder, on_progress=on_progress)

    def package(on_progress: OnProgress) -> None:
        train_alignment(dataset, backbone, texts, AlignmentStageConfig(), seed=given.seed, on_progress=on_progress)

    epoch, rows = {}, []
    for name, train, size, steps in (("allrec", package, 512, 20), ("plain", plain, PLAIN_BATCH, given.steps)):
        epoch[name] = seconds_a_step(train, steps, given.clock) * -(-num_examples // size)
    ratio = epoch["plain"] / epoch["allrec"]
    rows.append([ratio, 50, 200, epoch["allrec"], epoch["plain"], once])
    title = f"stage 1, {num_examples} next items, {len(known)} texts; epochs from {given.steps} and 20 measured steps"
    header = ["ratio", "at least", "aim", "allrec, s an epoch", "encoder in the loop, s", "encoding once, s"]
    show(title, given, header, rows)
    return {"plain": ratio}


if __name__ == "__main__":
    main()
