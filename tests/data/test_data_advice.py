"""What messages about data sets, ids, items and published files advise, done."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.oracles.marketplace import true_probabilities
from tests.remedies import program, refused

from allrec.data import PrepareConfig, SimulationConfig, load_dataset, prepare, simulate
from allrec.data import download as fetching
from allrec.data.catalogue import Catalogue
from allrec.data.dataset import load_timestamps
from allrec.data.download import check_address, fetch
from allrec.data.ids import ids_of, split_ids
from allrec.data.items import clean_new_items, read_new_items
from allrec.data.published import PublishedFile, PublishedSet
from allrec.errors import InputError
from data.file_server import CONTENT, FileServer

Make = Callable[..., Path]

# Data sets


def test_a_source_with_times_is_prepared(tmp_path: Path, make_source: Make) -> None:
    untimed = prepare(make_source(rows=["a,x", "a,y"], header="user_id,item_id", name="orders"), tmp_path / "untimed")
    with refused("has no timestamps, so it cannot be split by time. Prepare a source with times."):
        load_timestamps(untimed)
    assert len(load_timestamps(prepare(make_source(), tmp_path / "timed"))) == 8


def test_a_data_set_is_made(tmp_path: Path, make_source: Make) -> None:
    source, folder = make_source(), tmp_path / "shop.set"
    with refused("Make one: allrec prepare SOURCE --out {}") as caught:
        load_dataset(folder)
    command = str(caught.value).partition("Make one: allrec ")[2].replace("SOURCE", str(source)).split()
    program(*command)
    assert load_dataset(folder).num_interactions == 8


@pytest.mark.parametrize(("change", "is_other_version"), [({"format": 0}, True), ({"files": {}}, False)])
def test_a_data_set_that_cannot_be_read_is_prepared_again(
    tmp_path: Path, make_source: Make, change: dict[str, object], is_other_version: bool
) -> None:
    source, folder = make_source(), tmp_path / "out"
    prepare(source, folder)
    manifest = folder / "dataset.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    if is_other_version:
        with refused("Prepare it again from its source."):
            load_dataset(folder)
    else:
        with refused("is damaged: it does not name what a data set has. Prepare it again."):
            load_dataset(folder)
    prepare(source, folder)
    assert load_dataset(folder).num_interactions == 8


def test_a_data_set_that_was_written_anew_is_loaded_again(tmp_path: Path, make_source: Make) -> None:
    source = make_source()
    prepare(source, tmp_path / "out")
    targets = load_dataset(tmp_path / "out").targets["test"]
    prepare(make_source(rows=["a,x,1,5", "a,y,2,4", "a,z,3,3"]), tmp_path / "out")
    with refused("was removed or written anew after the data set was loaded. Load it again."):
        _ = targets.candidates["paper"]
    assert load_dataset(tmp_path / "out").targets["test"].candidates["paper"].shape == (1, 20)


def test_a_simulation_is_prepared_without_filters(tmp_path: Path) -> None:
    config = SimulationConfig(num_users=50, num_items=40, mean_interactions=6)
    simulate(tmp_path / "source", config)
    cut = prepare(tmp_path / "source", tmp_path / "cut", config=PrepareConfig(count_filter="k-core"))
    with pytest.raises(InputError, match="Prepare it from the simulation's folder, without filters"):
        true_probabilities(tmp_path / "source", cut)
    whole = prepare(tmp_path / "source", tmp_path / "whole")
    assert true_probabilities(tmp_path / "source", whole).max() <= 1


# Ids and items


def test_ids_are_written_as_a_list() -> None:
    with refused("expected a list of ids. Write [{}].") as caught:
        ids_of("abc", "item", "history")
    assert str(caught.value).endswith("Write ['abc'].")
    assert ids_of(["abc"], "item", "history") == ["abc"]


def test_ids_are_quoted_as_in_csv() -> None:
    with refused("Quote as in CSV: 'a,\"b,c\"'."):
        split_ids('a,"b')
    assert split_ids('a,"b,c"') == ["a", "b,c"]


def test_new_items_are_given_as_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    with refused("Give JSON lines with item_id and title."):
        read_new_items(path)
    path.write_text('{"item_id": "a"\n')
    with refused("{} is no JSON: {}. Write one object a line."):
        read_new_items(path)
    path.write_text('{"item_id": "a", "title": "Kettle"}\n')
    assert clean_new_items(read_new_items(path), {}).titles == ["Kettle"]


def test_each_new_item_gets_an_id_of_its_own_and_a_text() -> None:
    good = {"item_id": "a", "title": "Kettle"}
    with refused("Give every item an id of its own."):
        clean_new_items([{"title": "Kettle"}], {})
    with refused("is known already. Leave it out: a known item is not changed."):
        clean_new_items([good, {"item_id": "b", "title": "Pot"}], {"b": 0})
    with refused("is given twice, expected each once. Remove one."):
        clean_new_items([good, good], {})
    with refused("and enters by its text. Give one."):
        clean_new_items([{"item_id": "a"}], {})
    assert clean_new_items([good], {"b": 0}).item_ids == ["a"]
    assert clean_new_items([{"item_id": "a", "description": "Boils."}], {}).texts == ["Boils."]


def test_an_unknown_id_is_replaced_by_one_of_the_data_set(tmp_path: Path, make_source: Make) -> None:
    dataset = prepare(
        make_source(rows=["alice,kettle,1,5"], items=[{"item_id": "kettle", "title": "Kettle"}]), tmp_path / "out"
    )
    catalogue = Catalogue.of(dataset)
    with refused("unknown {} {}: {}. Ids are those of the data set.") as caught:
        catalogue.item("ketle")
    assert "did you mean 'kettle'?" in str(caught.value)
    assert catalogue.item("kettle") == 0


# Published files


def published(server: FileServer, name: str = "a.gz") -> PublishedSet:
    return PublishedSet("a-set", "A set", (PublishedFile(name, (server.address(name),)),), "movielens", "None")


def test_a_folder_that_cannot_be_written_is_mended_or_exchanged(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused("could not be written: {}. Mend that or give another --to; fetch again."):
        fetch(published(server), tmp_path / "file" / "below")
    fetch(published(server), tmp_path / "other")
    (tmp_path / "file").unlink()
    fetch(published(server), tmp_path / "file" / "below")
    assert (tmp_path / "file" / "below" / "a.gz").read_bytes() == CONTENT


def test_another_file_is_removed_and_fetched_again(server: FileServer, tmp_path: Path) -> None:
    fetch(published(server), tmp_path)
    (tmp_path / "a.gz").write_bytes(b"other")
    with refused("expected {}…. Remove it and fetch again."):
        fetch(published(server), tmp_path)
    (tmp_path / "a.gz").unlink()
    fetch(published(server), tmp_path)
    assert (tmp_path / "a.gz").read_bytes() == CONTENT


def test_a_file_is_fetched_later_or_put_there_by_other_means(server: FileServer, tmp_path: Path) -> None:
    del server.files["a.gz"]
    with refused("Is there a network? Fetch again later, or put the file at {} by other means.") as caught:
        fetch(published(server), tmp_path)
    place = Path(str(caught.value).partition("put the file at ")[2].partition(" by other means")[0])
    place.write_bytes(CONTENT)
    assert fetch(published(server), tmp_path)[0].path == place
    place.unlink()
    place.with_name("a.gz.sha256").unlink()
    server.files["a.gz"] = CONTENT
    fetch(published(server), tmp_path)
    assert place.read_bytes() == CONTENT


def test_a_file_that_was_changed_is_taken_without_its_record(server: FileServer, tmp_path: Path) -> None:
    path = fetch(published(server), tmp_path)[0].path
    path.unlink()
    server.files["a.gz"] = CONTENT + b"x"
    with refused("Where the publisher has changed the file and you trust that, remove {} first.") as caught:
        fetch(published(server), tmp_path)
    Path(str(caught.value).partition("trust that, remove ")[2].removesuffix(" first.")).unlink()
    fetch(published(server), tmp_path)
    assert path.read_bytes() == CONTENT + b"x"


def test_a_fetch_that_broke_off_goes_on(server: FileServer, tmp_path: Path) -> None:
    server.breaks_after = 3000
    with refused("broke off: {}. {} bytes are kept in {}; fetch again to go on."):
        fetch(published(server), tmp_path)
    server.breaks_after = None
    fetch(published(server), tmp_path)
    assert server.asked[-1][1] == "bytes=3000-"
    assert (tmp_path / "a.gz").read_bytes() == CONTENT


def test_another_fetch_is_waited_for(server: FileServer, tmp_path: Path) -> None:
    refusals = []

    def again(name: str, done: int, total: int | None) -> None:
        with refused("is being written by another fetch. Wait until that is over.") as caught:
            fetch(published(server), tmp_path)
        refusals.append(caught)

    fetch(published(server), tmp_path, again)
    assert refusals
    assert fetch(published(server), tmp_path)[0].trust == "recorded"


def test_another_address_is_given() -> None:
    with refused("and data are fetched over https alone. Give another address."):
        check_address("http://example.org/a.zip")
    check_address("https://example.org/a.zip")


def test_room_is_made_or_another_folder_given(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, usage = str(tmp_path / "full"), fetching.shutil.disk_usage
    with monkeypatch.context() as patch:
        free = type("Usage", (), {"free": 100})
        patch.setattr(fetching.shutil, "disk_usage", lambda path: free if str(path) == full else usage(path))
        with refused("bytes free, and {} needs {}. Make room, or give another --to."):
            fetch(published(server), tmp_path / "full")
        fetch(published(server), tmp_path / "other")
    fetch(published(server), tmp_path / "full")
    assert (tmp_path / "full" / "a.gz").read_bytes() == (tmp_path / "other" / "a.gz").read_bytes() == CONTENT


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def test_a_damaged_archive_is_removed_and_fetched_again(server: FileServer, tmp_path: Path) -> None:
    server.files["a.zip"] = zipped("a", b"1" * 100)[:-10]
    with refused("is a damaged archive: {}. Remove {}, and fetch again.") as caught:
        fetch(published(server, "a.zip"), tmp_path)
    assert "Remove it and a.zip.sha256, and fetch again." in str(caught.value)
    (tmp_path / "a.zip").unlink()
    (tmp_path / "a.zip.sha256").unlink()
    server.files["a.zip"] = zipped("a", b"1" * 100)
    fetch(published(server, "a.zip"), tmp_path)
    assert (tmp_path / "a").read_bytes() == b"1" * 100


def test_a_hostile_archive_is_not_trusted_and_another_is(server: FileServer, tmp_path: Path) -> None:
    server.files["a.zip"] = zipped("../escaped", b"bad")
    with refused("nothing was unpacked. Do not trust this archive."):
        fetch(published(server, "a.zip"), tmp_path / "one")
    assert not list(tmp_path.rglob("escaped"))
    server.files["a.zip"] = zipped("a", b"good")
    fetch(published(server, "a.zip"), tmp_path / "two")
    assert (tmp_path / "two" / "a").read_bytes() == b"good"
