"""Advice in messages: each piece is provoked, followed and seen to work.

``refused`` and ``advises`` see that a message gives the advice; what follows them in a test does what it says.
``tests/architecture/test_advice.py`` collects both from the tests, and fails for advice that none of them follows.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from allrec.errors import InputError, InputWarning
from program import run


def pattern(advice: str) -> str:
    """A regular expression for advice: ``{}`` stands for what differs from case to case."""
    return ".*".join(re.escape(part) for part in advice.split("{}"))


def advises(text: str, advice: str) -> None:
    """Fails unless a text gives the advice.

    Args:
        text: an error, a warning, what was printed or answered.
        advice: as the source says it, with ``{}`` for what is filled in.
    """
    assert re.search(pattern(advice), text, re.DOTALL), f"got {text!r}, expected advice such as {advice!r}"


@contextmanager
def refused(advice: str, error: type[Exception] = InputError) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Fails unless what is run within it is refused with the advice, see ``advises``; gives what was raised."""
    with pytest.raises(error) as caught:
        yield caught
    advises(str(caught.value), advice)


@contextmanager
def warned(advice: str, warning: type[Warning] = InputWarning) -> Iterator[pytest.WarningsRecorder]:
    """Fails unless what is run within it warns with the advice, see ``advises``; gives the warnings."""
    with pytest.warns(warning) as caught:
        yield caught
    advises("\n".join(str(one.message) for one in caught), advice)


def program(*arguments: object) -> str:
    """Runs the program in this process and returns what it printed; what it refuses is raised."""
    result = run(*arguments)
    return result.stdout + result.stderr
