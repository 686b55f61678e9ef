"""Ranking the whole catalogue by the read-out head, users a second, against ranking 20 candidates by likelihood.

python bench/readout.py --shape smollm2-135m
"""

from collections.abc import Sequence

from measure import compared, dataset_of, options, rates, start
from scene import make_scene
from shapes import SHAPES, make_llm

ASKED = {"20 by likelihood": (3.0, 10.0)}


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measures and prints; returns the ratio."""
    parser = options(__doc__ or "")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--users", type=int, default=16, help="a repeat")
    parser.add_argument("--tokens", type=int, default=16384, help="tokens_per_batch of ranking by likelihood")
    given = start(parser, arguments)
    scene = make_scene(dataset_of(given), make_llm(given.shape, seed=given.seed), given)
    head = scene.read_out()

    def whole(repeat: int) -> float:
        scene.whole_catalogue(scene.rows(repeat, given.users), head)
        return given.users

    def likelihood(repeat: int) -> float:
        scene.scores(scene.rows(repeat, given.users), given.tokens)
        return given.users

    whole(0), likelihood(0)
    found = rates({"allrec": whole, "20 by likelihood": likelihood}, given)
    claim = f"{scene.dataset.num_items} items by the read-out head, {given.shape}"
    return compared(claim, "users", found, given, ASKED)


if __name__ == "__main__":
    main()
