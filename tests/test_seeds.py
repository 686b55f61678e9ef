"""Named streams: the same for the same names, apart for all others."""

import ast
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from allrec import seeds

CALLS = ("seeds.rng", "seeds.torch_generator", "seeds.derived")
SOURCE = Path(__file__).parents[1] / "src" / "allrec"


def test_a_stream_depends_on_the_seed_and_on_every_name():
    streams = [(0, "a"), (1, "a"), (0, "b"), (0, "a", 0), (0, "a", "0"), (0, "ab", "c"), (0, "a", "bc"), (0,), (0, 0)]
    drawn = [seeds.rng(seed, *names).integers(1 << 62) for seed, *names in streams]
    derived = [seeds.derived(seed, *names) for seed, *names in streams]
    for (_, one), (_, other) in combinations(enumerate(zip(drawn, derived, strict=True)), 2):
        assert one[0] != other[0]
        assert one[1] != other[1]


def test_a_trailing_zero_is_a_name_of_its_own():
    """NumPy's own sequences of numbers take [s, x] and [s, x, 0] for one."""
    assert np.random.default_rng([3, 1]).random() == np.random.default_rng([3, 1, 0]).random()
    assert seeds.rng(3, 1).random() != seeds.rng(3, 1, 0).random()


def test_streams_stay_the_same_from_version_to_version():
    assert seeds.derived(0, "backbone", "weights") == 8333203767542358094
    assert seeds.rng(0, "fusion", "held out").integers(1_000_000) == 255348


def test_torch_draws_from_the_derived_seed():
    expected = torch.rand(3, generator=torch.Generator().manual_seed(seeds.derived(7, "x", 2)))
    assert torch.equal(torch.rand(3, generator=seeds.torch_generator(7, "x", 2)), expected)


def test_no_two_places_of_the_package_share_a_stream():
    """The names of every call, numbers and variables as what they are called: each stands in one place."""
    calls = []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "seeds.rng",
                "seeds.torch_generator",
                "seeds.derived",
            ):
                names = ", ".join(ast.unparse(argument) for argument in node.args[1:])
                calls.append((names.replace("STREAM", f"{path.stem}.STREAM"), f"{path.name}:{node.lineno}"))
    assert len(calls) > 30
    names = [name for name, _ in calls]
    assert {place: name for name, place in calls if names.count(name) > 1} == {}
