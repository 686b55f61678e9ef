"""Small sources for the tests of the data layer, and the folder of real data sets."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from data.file_server import CONTENT, FileServer, serving

HEADER = "user_id,item_id,timestamp,rating"
ROWS = ("a,x,1,5", "a,y,2,4", "a,z,3,3", "b,x,1,5", "b,y,2,1", "b,z,3,2", "b,x,4,5", "c,y,9,4")
ITEMS = (
    {"item_id": "x", "title": "Kettle", "description": "Boils water."},
    {"item_id": "y", "title": "Skillet", "description": None},
    {"item_id": "z", "title": None, "description": None},
    {"item_id": "w", "title": "Pot", "description": "Never bought."},
)


@pytest.fixture
def make_source(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder with interactions.csv and items.jsonl."""

    def make(
        rows: Sequence[str] = ROWS, items: Sequence[dict] = ITEMS, header: str = HEADER, name: str = "shop"
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "interactions.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: ``ALLREC_DATA``, else ``shared/data`` beside the project."""
    project = Path(__file__).resolve().parents[2]
    named = os.environ.get("ALLREC_DATA")
    folder = Path(named) if named else project.parent / "shared" / "data"
    if not (folder / "luxury-beauty").is_dir():
        pytest.skip(f"no real data sets in {folder}: name their folder with ALLREC_DATA.")
    return folder


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server on loopback that has ``CONTENT`` as a.gz."""
    monkeypatch.setenv("no_proxy", "*")
    with serving() as running:
        running.files["a.gz"] = CONTENT
        yield running
