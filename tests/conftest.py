"""What holds in every test."""

import pytest

from allrec.llm import loading


@pytest.fixture(autouse=True, scope="session")
def whole_precision():
    """Tiny models are compared to many digits, so none is loaded in bfloat16 where the machine is fast at it."""
    patch = pytest.MonkeyPatch()
    patch.setattr(loading, "faster_dtype", lambda device: "float32")
    yield
    patch.undo()
