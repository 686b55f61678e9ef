"""What holds in every test."""

import pytest

from allrec.config import dump_recipe
from allrec.llm import loading
from worlds import World, build_world


@pytest.fixture(autouse=True, scope="session")
def whole_precision():
    """Tiny models are compared to many digits, so none is loaded in bfloat16 where the machine is fast at it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(loading, "faster_dtype", lambda device: "float32")
    yield
    patch.undo()


@pytest.fixture(scope="session")
def small_world(tmp_path_factory) -> World:
    """One small world for all tests that only read it."""
    return build_world(tmp_path_factory.mktemp("small_world"))


@pytest.fixture(scope="module")
def recipe_file(small_world, tmp_path_factory):
    """The small world's recipe as a file; the program takes the world's caches meanwhile."""
    path = tmp_path_factory.mktemp("recipe") / "whole.toml"
    path.write_text(dump_recipe(small_world.recipe()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLREC_CACHE", str(small_world.cache))
        yield path
