"""The registry of published data sets."""

import re

import pytest

from allrec.data import PrepareConfig
from allrec.data.download import MAGIC, check_address
from allrec.data.published import PUBLISHED, PublishedFile, PublishedSet, find_published
from allrec.data.sources.registry import known_formats


def test_names_are_unique() -> None:
    names = [published.name for published in PUBLISHED]
    assert len(names) == len(set(names))
    assert find_published(names[3]) is PUBLISHED[3]


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.name)
def test_an_entry_is_whole(published: PublishedSet) -> None:
    assert published.format in known_formats()
    assert published.terms
    values = dict(option.split("=") for option in published.options)
    assert PrepareConfig(**values).duplicate_items == ("first" if "2018" in published.name else "refuse")
    for file in published.files:
        assert any(file.name.endswith(suffix) for suffix in MAGIC)
        assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
        for address in file.addresses:
            check_address(address)
            assert address.endswith(f"/{file.name}")


def test_the_size_is_that_of_all_files_or_unknown() -> None:
    one, two, unknown = (PublishedFile("a.zip", (), size=size) for size in (1, 2, None))
    assert PublishedSet("a", "", (one, two), "movielens", "").size == 1 + 2
    assert PublishedSet("a", "", (one, unknown), "movielens", "").size is None
