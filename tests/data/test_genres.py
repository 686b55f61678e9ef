"""Genres: from a column of the source into the data set, and into a run's catalogue."""

from dataclasses import replace

import polars as pl
import pytest
from tests.training.histories import dataset_of

from allrec.data import SimulationConfig, load_dataset, prepare, simulate
from allrec.data.catalogue import Catalogue
from allrec.data.dataset import genres_of


@pytest.mark.parametrize("name", ["genres", "genre", "categories", "category"])
def test_genres_are_a_column_of_lists(name):
    frame = pl.DataFrame({"title": ["a", "b", "c"], name: [["Drama", " Sci-Fi "], [], None]})
    assert genres_of(frame) == [["Drama", "Sci-Fi"], [], []]


def test_genres_are_a_column_of_strings():
    frame = pl.DataFrame({"category": ["Drama|Comedy", "Skin Care", "", " | ", None]})
    assert genres_of(frame) == [["Drama", "Comedy"], ["Skin Care"], [], [], []]


def test_a_source_without_such_a_column_has_no_genres():
    assert genres_of(pl.DataFrame({"title": ["a"], "brand": ["b"]})) is None


def test_a_data_set_has_its_sources_genres(tmp_path):
    simulate(tmp_path / "source", SimulationConfig(num_users=60, num_items=40, mean_interactions=5))
    genres = prepare(tmp_path / "source", tmp_path / "out").genres
    source = pl.read_ndjson(tmp_path / "source" / "items.jsonl")
    assert genres == source["genres"].to_list()
    assert load_dataset(tmp_path / "out").genres == genres


@pytest.mark.parametrize("genres", [None, [["Drama", "Comedy"], []], [[], []]])
def test_a_catalogue_keeps_genres(tmp_path, genres):
    catalogue = Catalogue.of(replace(dataset_of([[0, 1, 0]], 2), genres=genres))
    catalogue.save(tmp_path)
    assert ("genres" in pl.read_parquet(tmp_path / "items.parquet").columns) == (genres is not None)
    assert Catalogue.load(tmp_path, catalogue.wording).genres == genres
