"""No advice that does not work: whatever a message tells a user to do, a test provokes, does and sees to work."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SOURCE = TESTS.parent / "src" / "allrec"
CHECKS = ("refused", "advises", "warned")
ADVICE = re.compile(
    r"[.;:?] [A-Z][a-z]+\b|\. \{\}|did you mean \{\}|--[a-z]|pip install|\bmake [a-z]+\b|\ballrec [a-z]+ "
    r"|\b[a-z_]+=(true|false|none)\b|\((iconv|tr|jq) "
)
"""A second sentence, an option, a setting or a command."""
TOLD_ELSEWHERE = {"description", "help", "summary", "option_name"}
"""Keyword arguments that describe a setting or a route, and are no message."""
NO_ADVICE = (
    "First choices are even over the places",
    "were chosen on validation. Paired over seeds",
    ". Recommend one ",
    ". The recommendation is",
    ". The {} genres that this user likes are",
    "Ties count against the target.",
    "{} The language model's scores of each run. {}",
    "What the language model adds is fitted on top.",
    "Gap: distance between",
    "An interval holds for one look",
)
"""Parts of texts that look like advice and give none: captions, and what a prompt says."""


def words(node: ast.AST) -> str:
    """The text of a string expression, ``{}`` where something is filled in; empty where the node is none."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(words(part) for part in parts)
        case ast.FormattedValue():
            return "{}"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return words(left) + words(right)
        case _:
            return ""


def texts(node: ast.AST) -> Iterator[str]:
    """Every whole string below a node that is no docstring and describes no setting."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.keyword) and node.arg in TOLD_ELSEWHERE:
        return
    if text := words(node):
        yield text
        return
    for child in ast.iter_child_nodes(node):
        yield from texts(child)


def every_text() -> list[tuple[str, str]]:
    """(file, text) of everything that the package may say."""
    return [
        (path.relative_to(SOURCE).as_posix(), text)
        for path in sorted(SOURCE.rglob("*.py"))
        if "migrations" not in path.parts
        for text in texts(ast.parse(path.read_text(encoding="utf-8")))
    ]


def is_advice(text: str) -> bool:
    """Whether a text tells the user to do something; a lone word, such as an option's name, does not."""
    has_words = re.search("[a-z]+ [a-z]+", text.replace("{}", "")) is not None
    return has_words and ADVICE.search(text) is not None and not any(part in text for part in NO_ADVICE)


def checked(tree: ast.AST) -> Iterator[str]:
    """The advice that calls of ``CHECKS`` with a literal name, those of parametrised tests included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CHECKS:
            yield from (text for argument in node.args if (text := words(argument)))


def followed() -> list[str]:
    """All advice that the tests follow."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sorted(TESTS.rglob("test_*.py")))
    return [advice for tree in trees for advice in checked(tree)]


TEXTS = every_text()
MESSAGES = [(file, text) for file, text in TEXTS if is_advice(text)]
FOLLOWED = followed()


@pytest.mark.parametrize(("file", "text"), MESSAGES)
def test_advice_is_followed_by_a_test(file: str, text: str) -> None:
    assert any(advice in text for advice in FOLLOWED), (
        f"{file} says {text!r}, and no test does it and sees it work: see tests/remedies.py"
    )


@pytest.mark.parametrize("advice", sorted(set(FOLLOWED)))
def test_a_test_follows_one_message(advice: str) -> None:
    """Advice in the words of two messages would hide the one that nobody follows."""
    exact = {(file, text) for file, text in TEXTS if advice == text}
    given = exact or {(file, text) for file, text in TEXTS if advice in text}
    assert len(given) == 1, given


def end_of(body: list[ast.stmt]) -> ast.stmt:
    """The last statement of a body, within blocks that do more than check a refusal."""
    last = body[-1]
    match last:
        case ast.With(items=items) if not any(text for item in items for text in checked(item)):
            return end_of(last.body)
        case ast.For() | ast.Try():
            return end_of(last.body)
        case _:
            return last


def test_a_refusal_is_not_the_end_of_its_test() -> None:
    """What a message advises is done after it: nothing is followed where the refusal comes last."""
    last = [
        f"{path.name}:{node.lineno} {node.name}"
        for path in sorted(TESTS.rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and any(checked(end_of(node.body)))
    ]
    assert last == []


def test_advice_is_recognised() -> None:
    tree = ast.parse(
        'def f(x):\n    """Give it. Use it."""\n    raise InputError(f"got {x}, expected 1. " + "Give 1.")\n'
    )
    assert [text for text in texts(tree) if ADVICE.search(text)] == ["got {}, expected 1. Give 1."]
