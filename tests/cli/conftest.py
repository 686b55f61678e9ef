"""The program on the small world, with the world's caches."""

import pytest

from allrec.config import dump_recipe
from worlds import World


@pytest.fixture(scope="module")
def recipe_file(small_world: World, tmp_path_factory: pytest.TempPathFactory):
    """The small world's recipe as a file; commands take the world's caches meanwhile."""
    path = tmp_path_factory.mktemp("recipe") / "whole.toml"
    path.write_text(dump_recipe(small_world.recipe()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALLREC_CACHE", str(small_world.cache))
        yield path
