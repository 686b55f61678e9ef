"""Ranking 20 candidates, users a second: the package against 20 whole sequences, and against generating a title.

python bench/ranking.py --shape opt-125m --users 2
"""

from collections.abc import Sequence

import plain
from measure import compared, dataset_of, options, rates, start
from scene import make_scene
from shapes import SHAPES, make_llm

ASKED = {"20 whole sequences": (10.0, 15.0), "a title token by token": (1.5, 3.0)}


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measures and prints; returns the ratios."""
    parser = options(__doc__ or "")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--users", type=int, default=4, help="a repeat")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens_per_batch of the package")
    given = start(parser, arguments)
    scene = make_scene(dataset_of(given), make_llm(given.shape, seed=given.seed), given)
    scene.scores(scene.rows(0, 1), given.tokens)

    ranking = plain.ranking_sides(scene, given.users, given.users, given.tokens)
    names = ("allrec", "20 whole sequences", "a title token by token")
    sides = dict(zip(names, ranking.values(), strict=True))
    found = rates(sides, given)
    return compared(f"ranking 20 candidates, {given.shape}", "users", found, given, ASKED)


if __name__ == "__main__":
    main()
