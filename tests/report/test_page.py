"""The page: whole, self-contained, and safe whatever names and titles say."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from allrec.config import dump_recipe
from allrec.errors import InputError
from allrec.experiments.compare import compare, rows_of
from allrec.recommender import AllRec
from allrec.report import html
from allrec.report.page import flatten, paired_tests, write_report
from allrec.report.view import load_view

HOSTILE = '<script>alert("x")</script>&$x^$'
PARTS = (
    "What ran",
    "Scores, protocol paper",
    "Losses",
    "Segments",
    "How often the target was seen",
    "The joint space",
    "Calibration",
    "Time by stage",
    "Does the alignment do what is claimed?",
)
VOID = {"meta", "img", "br", "link"}


class Reader(HTMLParser):
    """Tags opened and closed, and every attribute that names a resource."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.resources, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.resources += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def world(small_world, tmp_path_factory):
    folder, recipe = tmp_path_factory.mktemp("world"), small_world.recipe()
    given = {"llm": str(small_world.llm), "cache": small_world.cache}
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    rows = rows_of([str(folder / "recipe.toml")])
    compare(small_world.dataset, rows, folder / "out", seeds=(0, 1), **given)
    hostile = recipe.model_copy(update={"name": HOSTILE})
    AllRec.train(small_world.dataset, run=folder / "run", recipe=hostile, **given)
    return folder


@pytest.fixture(scope="module")
def page(world):
    return write_report(world / "run")


def test_the_page_of_a_run_shows_every_part(page):
    reader = read(page)
    text = " ".join(reader.text)
    assert [part for part in PARTS if part not in text] == []
    assert any(" cores" in cell for cell in reader.text)
    assert reader.seen.count("img") == 6
    assert reader.seen.count("figcaption") == reader.seen.count("img")


def test_nothing_is_fetched_from_anywhere(world, page):
    for path in (page, write_report(world / "out")):
        reader = read(path)
        assert all(resource.startswith("data:image/svg+xml;base64,") for resource in reader.resources)
        assert not re.findall(r"https?://|@import|url\(", path.read_text())
        assert not {"script", "iframe", "link", "object"} & set(reader.seen)


def test_a_hostile_name_stays_text(page):
    reader = read(page)
    assert "script" not in reader.seen
    assert any(HOSTILE in text for text in reader.text)


def test_hostile_categories_and_rows_stay_text(world, monkeypatch):
    monkeypatch.setattr("allrec.report.view._first", lambda genres: [HOSTILE, "衣服", None] * 20)
    reader = read(write_report(world / "run", out=world / "hostile.html"))
    assert "script" not in reader.seen
    text = html.table(("<b>", "two"), [[HOSTILE, "0.5 [<i>, 1]"]])
    assert "<script>" not in text
    assert "<i>" not in text
    assert "<b>" not in text


def test_a_warning_in_a_cell_stands_out_on_a_line_of_its_own():
    text = html.table(("x",), [["+0.1000, p = 0.200, NOT above"], ["-0.1000, p < .001"], ["polars 1, python 3"]])
    small = '<span class="interval">{}</span>'.format
    assert f"<td>+0.1000{small('p = 0.200')}<strong>{small('NOT above')}</strong></td>" in text
    assert f"<td>-0.1000{small('p &lt; .001')}</td>" in text
    assert "<td>polars 1, python 3</td>" in text


def test_the_page_of_a_comparison_holds_its_tables_and_a_part_a_run(world):
    reader = read(write_report(world / "out"))
    text = " ".join(reader.text)
    assert "training, s" in text
    assert "chance" in text
    assert "llm-random-items" in text
    assert text.count("recipe-seed1") >= 1
    # A part for each run of the first seed.
    assert reader.seen.count("details") == 1
    assert (world / "out" / "report.html").is_file()


def test_the_same_run_gives_the_same_page(world, page):
    again = write_report(world / "run", out=world / "again.html")
    assert again.read_bytes() == page.read_bytes()


def test_without_matplotlib_the_page_has_its_tables_and_says_what_is_missing(world, monkeypatch):
    for module in ("page", "figures"):
        monkeypatch.setattr(f"allrec.report.{module}.has_matplotlib", lambda: False)
    reader = read(write_report(world / "run", out=world / "bare.html"))
    assert "img" not in reader.seen
    assert any("pip install 'allrec[report]'" in text for text in reader.text)


def test_what_is_no_run_is_refused(world, tmp_path):
    with pytest.raises(InputError, match="neither a run nor a comparison"):
        write_report(tmp_path)


def test_a_run_that_was_not_evaluated_has_a_page(world, tmp_path):
    AllRec.from_pretrained(world / "run").save_pretrained(tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    (tmp_path / "run" / "evaluate" / "ranks.safetensors").unlink()
    assert any("has not been evaluated" in text for text in read(write_report(tmp_path / "run")).text)


def test_new_targets_stand_beside_all(world, page):
    rows = load_view(world / "run").metrics["results"]
    wanted = {(row["scorer"], row["segment"]) for row in rows if row["segment"] in ("all", "new")}
    text = page.read_text(encoding="utf-8")
    for scorer, segment in wanted:
        assert re.search(rf"<td[^>]*>{scorer}</td>\s*<td[^>]*>test</td>\s*<td[^>]*>{segment}</td>", text), (
            scorer,
            segment,
        )


def test_a_paired_test_stands_in_the_row_of_its_scorers_and_the_column_of_its_split():
    def row(scorer, protocol, difference):
        return {
            "scorer": scorer, "against": "cf", "split": "test", "protocol": protocol, "difference": difference,
            "p": 0.01, "p_holm": 0.02, "users": 1234,
        }  # fmt: skip

    text = "".join(paired_tests([row("llm", "paper", -0.05), row("llm", "full", 0.1), row("text", "full", 0.2)]))
    rows = [re.sub(r"<[^>]+>", " ", one).split() for one in text.split("<tr>")[1:]]
    assert rows[0] == ["scorer", "less", "test,", "paper", "test,", "full"]
    assert rows[1] == ["llm", "cf", "-0.0500", "p", "=", "0.020", "+0.1000", "p", "=", "0.020"]
    assert rows[2][:7] == ["text", "cf", "–", "+0.2000", "p", "=", "0.020"]
    assert "".join(paired_tests([])) == ""


def test_measures_are_flattened_by_their_names():
    nested = {"a": {"b": 1, "none": None}, "list": [{"seen": "2 to 5", "d": 0.5}, 7], "word": "x", "yes": True}
    assert flatten(nested) == {"a, b": 1.0, "list, seen 2 to 5, d": 0.5, "list, 1": 7.0}


def test_the_confidence_of_a_scorer_goes_with_its_hits(world):
    view = load_view(world / "run")
    confidence = view.confidence("llm")
    row = next(row for row in view.rows("llm") if row["segment"] == "all")
    assert confidence.is_hit.mean() == pytest.approx(row["HR@1"])
    assert len(confidence.values) == row["users"] == 30
    # Twenty candidates: the first choice has at least a twentieth.
    assert 1 / 20 <= confidence.values.min() <= confidence.values.max() <= 1
    assert view.confidence("cf") is None
