"""Stage 2 and ranking with a language model of a known shape, and their share of the machine's measured matrix peak.

    python bench/llm.py --shape tiny
    python bench/llm.py --shape opt-6.7b --batch-users 16 --plain-users 4

Random weights, 16-bit on an accelerator. A token's forward pass is counted as two operations a weight, with the
gradient, which the frozen weights pass on and do not keep, as four; attention's own operations are left out, so the
share is a little low. Tokens of the plain path are those of the package's: what it reads anew is no work that was asked
for.
"""

import statistics
from collections.abc import Sequence

import numpy as np
import torch

import plain
from measure import CLOCKS, dataset_of, options, rates, show, start
from scene import Scene, make_scene
from shapes import SHAPES, make_llm, num_weights

PEAK_WIDTH = {"cpu": 1024, "cuda": 8192}


def matrix_peak(device: str, dtype: torch.dtype, clock: str) -> float:
    """Operations a second of a large matrix product, the best of a few."""
    width = PEAK_WIDTH[device]
    left, right = (torch.randn(width, width, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        wait(device)
        begun = CLOCKS[clock]()
        left @ right
        wait(device)
        best = max(best, 2 * width**3 / (CLOCKS[clock]() - begun))
    return best


def wait(device: str) -> None:
    """Until the accelerator has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def tokens_of(scene: Scene, rows: np.ndarray, *, ranked: bool) -> tuple[int, int]:
    """Tokens of these users' prompts, and of their answers: the target's alone, or those of all candidates."""
    prompts = scene.builder.prompts(scene.histories(rows), scene.candidates[rows])
    items = scene.candidates[rows].ravel() if ranked else scene.examples.items[rows]
    return len(prompts.tokens.values), len(scene.builder.answers(items).values)


def operations(scene: Scene, rows: np.ndarray, *, ranked: bool) -> float:
    """Of one forward pass over these users: every token goes through the layers, an answer's through the head."""
    prompts, answers = tokens_of(scene, rows, ranked=ranked)
    layers, head = num_weights(scene.llm)
    return 2.0 * (layers * (prompts + answers) + head * answers)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measures and prints; returns the ratios and shares."""
    parser = options(__doc__ or "")
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--device", choices=PEAK_WIDTH, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-users", type=int, default=4, help="users of a repeat of the package")
    parser.add_argument("--plain-users", type=int, default=2, help="users of a repeat of the plain path")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens read at once when ranking")
    given = start(parser, arguments)
    dtype = torch.bfloat16 if given.device == "cuda" else torch.float32
    peak = matrix_peak(given.device, dtype, given.clock)
    scene = make_scene(dataset_of(given), make_llm(given.shape, given.device, dtype, given.seed), given)

    def train(repeat: int) -> float:
        scene.soft_tokens.zero_grad()
        rows = scene.rows(repeat, given.batch_users)
        scene.loss(rows).backward()
        wait(given.device)
        return sum(tokens_of(scene, rows, ranked=False))

    def train_plainly(repeat: int) -> float:
        scene.soft_tokens.zero_grad()
        rows = scene.rows(repeat, given.plain_users)
        plain.train(scene, rows)
        wait(given.device)
        return sum(tokens_of(scene, rows, ranked=False))

    ranking = plain.ranking_sides(scene, given.batch_users, given.plain_users, given.tokens)
    train(0), ranking["rank"](0)
    sides = {"train": train, "train plainly": train_plainly, **ranking}
    found = rates(sides, given)
    speed = {name: statistics.median(values) for name, values in found.items()}
    some = scene.rows(0, given.batch_users)
    step = 2 * operations(scene, some, ranked=False) / sum(tokens_of(scene, some, ranked=False))
    list_of_20 = operations(scene, some, ranked=True) / len(some)
    results = {
        "train": speed["train"] / speed["train plainly"],
        "rank": speed["rank"] / speed["rank 20 sequences"],
        "rank against generating": speed["rank"] / speed["generate a title"],
        "share of peak, train": step * speed["train"] / peak,
        "share of peak, rank": list_of_20 * speed["rank"] / peak,
    }
    machine = torch.cuda.get_device_name() if given.device == "cuda" else "CPU"
    rows = [
        [results["train"], results["share of peak, train"], "stage 2, tokens", speed["train"], speed["train plainly"]],
        [
            results["rank"],
            results["share of peak, rank"],
            "ranking 20, users",
            speed["rank"],
            speed["rank 20 sequences"],
        ],
        [
            results["rank against generating"],
            "",
            "ranking 20 or a title, users",
            speed["rank"],
            speed["generate a title"],
        ],
    ]
    weights = sum(num_weights(scene.llm)) / 1e9
    title = f"{given.shape}, {weights:.3g} billion weights, {machine}, peak {peak / 1e12:.3g} TFLOP/s"
    show(title, given, ["ratio", "share of peak", "what", "allrec, a second", "plain, a second"], rows)
    return results


if __name__ == "__main__":
    main()
