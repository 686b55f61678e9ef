"""Stage 2, users a second: the package against batch 2, every logit, padded, tokenising in the loop.

python bench/stage_two.py --shape smollm2-135m
python bench/stage_two.py --shape opt-125m --users 4
"""

from collections.abc import Sequence

import plain
from measure import compared, dataset_of, options, rates, start
from scene import make_scene
from shapes import SHAPES, make_llm

ASKED = {"smollm2-135m": (2.5, 5.0)}
OTHERS = (1.4, 2.0)


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measures and prints; returns the ratio."""
    parser = options(__doc__ or "")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument(
        "--users", type=int, default=48, help="a repeat; the package takes them in batches of like length"
    )
    given = start(parser, arguments)
    scene = make_scene(dataset_of(given), make_llm(given.shape, seed=given.seed), given)

    def package(repeat: int) -> float:
        for batch in scene.batches(scene.rows(repeat, given.users)):
            scene.soft_tokens.zero_grad()
            scene.loss(batch).backward()
        return given.users

    def public(repeat: int) -> float:
        scene.soft_tokens.zero_grad()
        plain.train(scene, scene.rows(repeat, given.users))
        return given.users

    package(0)
    found = rates({"allrec": package, "plain": public}, given)
    asked = {"plain": ASKED.get(given.shape, OTHERS)}
    return compared(f"stage 2, forward and backward, {given.shape}", "users", found, given, asked)


if __name__ == "__main__":
    main()
