"""What the documents point at exists: functions, classes, methods, tests and files."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE, DOCS = ROOT / "src" / "allrec", ROOT / "docs"
NAMED = re.compile(r"`([\w/.-]+\.py)::([\w.]+)`")
FILE = re.compile(r"`((?:src|tests|docs|scripts|bench)/[\w/.-]+)`")
PATH = re.compile(r"`([\w/-]+\.(?:py|md|toml|yaml))`")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
METHOD, FIDELITY = ("docs/method.md", "docs/fidelity.md")
CURRENT = (
    "README.md", "CONTRIBUTING.md", METHOD, FIDELITY, "docs/architecture.md", "docs/glossary.md", "docs/operations.md"
)  # fmt: skip
"""Documents of the code as it is; decisions and experiments also name files that are gone."""


def place(path):
    """Source files are named from src/allrec on, tests from the root."""
    return (ROOT if path.startswith(("tests/", "scripts/", "bench/")) else SOURCE) / path


@cache
def names(path):
    """Functions and classes of a file, methods as Class.method."""
    found = {
        node.name: node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, DEFINITIONS)
    }
    inner = {f"{name}.{node.name}" for name, one in found.items() if isinstance(one, ast.ClassDef)
             for node in one.body if isinstance(node, DEFINITIONS)}  # fmt: skip
    return found.keys() | inner


def missing(text):
    """What a text names and nobody wrote."""
    absent = [f"{path}::{name}" for path, name in NAMED.findall(text)
              if not place(path).is_file() or name not in names(place(path))]  # fmt: skip
    return absent + [path for path in FILE.findall(text) if not (ROOT / path).exists()]


def lost(text):
    """Files that a text names, from the root, from src/allrec, from docs or by name alone, and that do not exist."""
    names = [path for path in PATH.findall(text) if not any((base / path).exists() for base in (ROOT, SOURCE, DOCS))]
    return [path for path in names if "/" in path or not any(SOURCE.rglob(path))]


def rows(text):
    """The cells of every row of a table, headers left out."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [
        row for row, line in zip(cells, lines, strict=True) if "---" not in line and row[0] not in ("equation", "what")
    ]


@pytest.mark.parametrize(
    "document", sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
)
def test_what_a_document_names_exists(document):
    assert missing((ROOT / document).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("document", CURRENT)
def test_every_path_in_a_current_document_exists(document):
    assert lost((ROOT / document).read_text(encoding="utf-8")) == []


def test_every_equation_has_a_function_and_a_test():
    found = rows((ROOT / METHOD).read_text(encoding="utf-8"))
    assert len(found) > 40
    for equation, functions, tests in found:
        assert NAMED.findall(functions), equation
        assert not functions.startswith("`tests/"), equation
        assert all(path.startswith("tests/") and name.startswith("test_") for path, name in NAMED.findall(tests)), (
            equation
        )
        assert NAMED.findall(tests), equation


def test_every_difference_has_its_reason():
    for row in rows((ROOT / FIDELITY).read_text(encoding="utf-8")):
        assert len(row) == 6, row
        assert row[3], row[0]


def test_a_name_that_nobody_wrote_is_found():
    text = "`alignment/losses.py::no_such_loss` `models/nowhere.py::x` `tests/test_docs.py::rows` `docs/none.md`"
    assert missing(text) == ["alignment/losses.py::no_such_loss", "models/nowhere.py::x", "docs/none.md"]
    assert lost("`data/protocols.py` `stages.py` `docs/glossary.md` `data/losses.py` `lost.py`") == [
        "data/losses.py",
        "lost.py",
    ]
    assert missing("`alignment/model.py::Alignment.losses` `alignment/model.py::Alignment.lost`") == [
        "alignment/model.py::Alignment.lost"
    ]
