"""What holds in every test."""

import pytest

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
