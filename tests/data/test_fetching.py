"""Fetching: whole, resumed, checked; from a server on this machine."""

import gzip
import hashlib
import io
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.remedies import advises

from allrec.data import download as fetching
from allrec.data import prepare
from allrec.data.download import Fetched, check_address, fetch, record_of
from allrec.data.published import PublishedFile, PublishedSet
from allrec.errors import InputError
from data.file_server import CONTENT, FileServer, serving
from program import call


def published(server: FileServer, *paths: str, name: str = "a.gz", sha256: str | None = None) -> PublishedSet:
    addresses = tuple(server.address(path) for path in paths or ("a.gz",))
    return PublishedSet("a-set", "A set", (PublishedFile(name, addresses, sha256),), "movielens", "None")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def begin(server: FileServer, folder: Path, num_bytes: int, sha256: str | None = None) -> None:
    """Leaves a part of so many bytes."""
    server.breaks_after = num_bytes
    with pytest.raises(InputError, match=f"broke off: {num_bytes:,} of {len(CONTENT):,} bytes came"):
        fetch(published(server, sha256=sha256), folder)
    server.breaks_after = None


def test_a_whole_fetch_tells_its_progress_and_leaves_nothing_else(server: FileServer, tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    fetched = fetch(published(server, sha256=digest(CONTENT)), tmp_path / "to", lambda *one: told.append(one))
    assert fetched == [Fetched(tmp_path / "to" / "a.gz", "published")]
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["a.gz"]
    assert (tmp_path / "to" / "a.gz").read_bytes() == CONTENT
    assert told[0] == ("a.gz", 0, len(CONTENT))
    assert told[-1] == ("a.gz", len(CONTENT), len(CONTENT))
    assert server.asked == [("a.gz", None, None)]


def test_what_is_there_is_checked_and_not_fetched(server: FileServer, tmp_path: Path) -> None:
    fetch(published(server, sha256=digest(CONTENT)), tmp_path)
    fetch(published(server, sha256=digest(CONTENT)), tmp_path)
    assert len(server.asked) == 1
    (tmp_path / "a.gz").write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match=r"a\.gz is not the file that was published .* Remove it and fetch again"):
        fetch(published(server, sha256=digest(CONTENT)), tmp_path)


def test_a_broken_fetch_goes_on_where_it_broke(server: FileServer, tmp_path: Path) -> None:
    begin(server, tmp_path, 3000)
    assert (tmp_path / "a.gz.part").read_bytes() == CONTENT[:3000]
    assert not (tmp_path / "a.gz").exists()
    told: list[int] = []
    fetch(published(server), tmp_path, lambda name, done, total: told.append(done))
    assert server.asked[-1] == ("a.gz", "bytes=3000-", f'"{digest(CONTENT)[:8]}"')
    assert told[0] == 3000
    assert (tmp_path / "a.gz").read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gz", "a.gz.sha256"]


KILLED = """
import os, signal, sys
from pathlib import Path
from allrec.data import download as fetching
from allrec.data.published import PublishedFile, PublishedSet

fetching.CHUNK_BYTES = 1000

def kill(name, done, total):
    if done >= 9000:
        os.kill(os.getpid(), signal.SIGKILL)

file = PublishedFile("a.gz", (sys.argv[1],))
fetching.fetch(PublishedSet("a-set", "", (file,), "movielens", ""), Path(sys.argv[2]), kill)
"""


def test_a_killed_fetch_goes_on_where_it_was_killed(server: FileServer, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, server.address("a.gz"), str(tmp_path)]
    ended = subprocess.run(command, env=os.environ | {"no_proxy": "*"}, check=False)
    assert ended.returncode == -signal.SIGKILL
    kept = (tmp_path / "a.gz.part").stat().st_size
    assert 0 < kept <= 10_000
    fetch(published(server), tmp_path)
    assert server.asked[-1][1] == f"bytes={kept}-"
    assert (tmp_path / "a.gz").read_bytes() == CONTENT


def test_a_server_without_ranges_begins_again(server: FileServer, tmp_path: Path) -> None:
    begin(server, tmp_path, 3000)
    server.has_ranges = False
    fetch(published(server), tmp_path)
    assert server.asked[-1][1] == "bytes=3000-"
    assert (tmp_path / "a.gz").read_bytes() == CONTENT


def test_two_versions_of_a_file_are_never_joined(server: FileServer, tmp_path: Path) -> None:
    begin(server, tmp_path, 3000)
    server.files["a.gz"] = CONTENT[:2] + CONTENT[:1:-1]
    fetch(published(server), tmp_path)
    assert (tmp_path / "a.gz").read_bytes() == server.files["a.gz"]


def test_without_tag_and_checksum_it_begins_again(server: FileServer, tmp_path: Path) -> None:
    server.has_tags = False
    begin(server, tmp_path, 3000)
    fetch(published(server), tmp_path)
    assert server.asked[-1][1] is None


def test_without_a_tag_it_goes_on_where_a_checksum_can_tell(server: FileServer, tmp_path: Path) -> None:
    server.has_tags = False
    begin(server, tmp_path, 3000, digest(CONTENT))
    fetch(published(server, sha256=digest(CONTENT)), tmp_path)
    assert server.asked[-1][1] == "bytes=3000-"


def test_a_part_that_is_whole_is_taken(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "a.gz.part").write_bytes(CONTENT)
    fetch(published(server, sha256=digest(CONTENT)), tmp_path)
    assert (tmp_path / "a.gz").read_bytes() == CONTENT
    assert server.asked == [("a.gz", f"bytes={len(CONTENT)}-", None)]


def test_a_part_that_is_too_long_is_given_up(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "a.gz.part").write_bytes(CONTENT + b"x")
    with pytest.raises(InputError, match="given up"):
        fetch(published(server, sha256=digest(CONTENT)), tmp_path)
    fetch(published(server, sha256=digest(CONTENT)), tmp_path)
    assert (tmp_path / "a.gz").read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_leaves_nothing(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"its sha256 is .*…, expected 000000000000…; what came was thrown away"):
        fetch(published(server, sha256="0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_second_address_serves_where_the_first_does_not(server: FileServer, tmp_path: Path) -> None:
    server.files["bad.gz"] = CONTENT[:-5]
    fetch(published(server, "missing.gz", "bad.gz", "a.gz", sha256=digest(CONTENT)), tmp_path)
    assert [path for path, *_ in server.asked] == ["missing.gz", "bad.gz", "a.gz"]
    assert (tmp_path / "a.gz").read_bytes() == CONTENT


def test_it_goes_on_at_the_address_where_it_began(server: FileServer, tmp_path: Path) -> None:
    begin(server, tmp_path, 3000)
    server.files["mirror.gz"] = CONTENT
    fetch(published(server, "mirror.gz", "a.gz"), tmp_path)
    assert server.asked[-1][:2] == ("a.gz", "bytes=3000-")


def test_nothing_there_says_where_it_looked(server: FileServer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.gz could not be fetched \(http.*gone\.gz: 404 .*Fetch again later"):
        fetch(published(server, "gone.gz"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_server_at_all_keeps_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as closed:
        address = closed.address("a.gz")
    (tmp_path / "a.gz.part").write_bytes(CONTENT[:10])
    gone = PublishedSet("a-set", "", (PublishedFile("a.gz", (address,)),), "movielens", "")
    with pytest.raises(InputError, match=r"refused\)\. 10 bytes are kept in .*a\.gz\.part"):
        fetch(gone, tmp_path)
    assert (tmp_path / "a.gz.part").stat().st_size == 10


def test_without_a_published_checksum_the_first_fetch_decides(server: FileServer, tmp_path: Path) -> None:
    assert fetch(published(server), tmp_path)[0].trust == "first use"
    assert record_of(tmp_path / "a.gz").read_text() == f"{digest(CONTENT)}  a.gz\n"
    assert fetch(published(server), tmp_path)[0].trust == "recorded"
    (tmp_path / "a.gz").unlink()
    server.files["a.gz"] = CONTENT + b"x"
    with pytest.raises(InputError, match="expected"):
        fetch(published(server), tmp_path)
    assert not (tmp_path / "a.gz").exists()


def test_a_page_in_place_of_a_file_is_not_trusted(server: FileServer, tmp_path: Path) -> None:
    server.files["a.gz"] = b"<html>Please log in.</html>"
    with pytest.raises(InputError, match=r"what came is no \.gz file"):
        fetch(published(server), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_fetches_at_once_do_not_mix(server: FileServer, tmp_path: Path) -> None:
    def again(name: str, done: int, total: int | None) -> None:
        with pytest.raises(InputError, match="being written by another fetch"):
            fetch(published(server), tmp_path)

    fetch(published(server), tmp_path, again)
    assert (tmp_path / "a.gz").read_bytes() == CONTENT


def test_a_full_disk_is_told_before_anything_comes(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(InputError, match=f"has 100 bytes free, and a.gz.part needs {len(CONTENT):,}"):
        fetch(published(server), tmp_path)


def test_a_folder_that_cannot_be_made_is_told(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not be written"):
        fetch(published(server), tmp_path / "file" / "below")


FULL = """
import resource, sys
from allrec.data import published
from allrec.data.published import PublishedFile, PublishedSet

file = PublishedFile(sys.argv.pop(1), (sys.argv.pop(1),))
published.PUBLISHED = (PublishedSet("a-set", "A set", (file,), "movielens", "For tests"),)
max_bytes = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))
from allrec.cli.commands import main
main()
"""


def fetch_within(server: FileServer, name: str, folder: Path, max_bytes: int) -> subprocess.CompletedProcess[str]:
    """``allrec data fetch`` in a process of its own, in which no file may grow beyond ``max_bytes``."""
    command = [sys.executable, "-c", FULL, name, server.address(name), str(max_bytes)]
    arguments = ["data", "fetch", "a-set", "--to", str(folder)]
    return subprocess.run(
        [*command, *arguments], env=os.environ | {"no_proxy": "*"}, capture_output=True, text=True, check=False
    )


def check_full(result: subprocess.CompletedProcess[str], place: Path) -> None:
    """One sentence with the path, and exit code 2."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("allrec: ")]
    assert f"{place}: File too large" in sentence


@pytest.mark.parametrize("max_bytes", [0, 3000])
def test_a_disk_that_fills_while_a_file_comes(server: FileServer, tmp_path: Path, max_bytes: int) -> None:
    result = fetch_within(server, "a.gz", tmp_path / "to", max_bytes)
    left = {path.name: path.read_bytes() for path in (tmp_path / "to").iterdir() if path.name != "a.gz.part.from"}
    if max_bytes:
        check_full(result, tmp_path / "to" / "a.gz.part")
        advises(result.stderr, "{}: {}. Free some space and fetch again: what came so far is kept.")
        assert CONTENT.startswith(left.pop("a.gz.part"))
    else:
        check_full(result, tmp_path / "to" / "a.gz.part.from")
    assert left == {}
    assert fetch_within(server, "a.gz", tmp_path / "to", 1 << 20).returncode == 0
    assert (tmp_path / "to" / "a.gz").read_bytes() == CONTENT
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["a.gz", "a.gz.sha256"]


def test_a_disk_that_fills_while_an_archive_is_unpacked(server: FileServer, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ratings.csv", b"1" * 100_000)
    server.files["ml.zip"] = buffer.getvalue()
    check_full(fetch_within(server, "ml.zip", tmp_path / "to", 50_000), tmp_path / "to" / "ratings.csv")
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["ml.zip", "ml.zip.sha256"]
    assert fetch_within(server, "ml.zip", tmp_path / "to", 1 << 20).returncode == 0
    assert (tmp_path / "to" / "ratings.csv").read_bytes() == b"1" * 100_000


@pytest.mark.parametrize(
    "address",
    ["http://example.org/a.zip", "ftp://example.org/a.zip", "file:///etc/passwd", "http://127.0.0.1.evil.org"],
)
def test_https_alone(address: str) -> None:
    with pytest.raises(InputError, match="is no https address"):
        check_address(address)


def test_a_redirect_leads_to_https_alone(server: FileServer, tmp_path: Path) -> None:
    server.redirects["moved.gz"] = server.address("a.gz")
    fetch(published(server, "moved.gz"), tmp_path / "one")
    assert (tmp_path / "one" / "a.gz").read_bytes() == CONTENT
    server.redirects["moved.gz"] = "http://example.org/a.gz"
    with pytest.raises(InputError, match=r"http://example\.org/a\.gz is no https address"):
        fetch(published(server, "moved.gz"), tmp_path / "two")


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_an_archive_is_unpacked_without_its_one_folder(server: FileServer, tmp_path: Path) -> None:
    server.files["ml.zip"] = zipped(**{"ml/": b"", "ml/ratings.csv": b"r", "ml/more/movies.csv": b"m"})
    for _ in range(2):
        fetch(published(server, "ml.zip", name="ml.zip"), tmp_path)
        assert (tmp_path / "ratings.csv").read_bytes() == b"r"
        assert (tmp_path / "more" / "movies.csv").read_bytes() == b"m"
        (tmp_path / "ratings.csv").unlink()


def test_an_archive_of_several_folders_keeps_them(server: FileServer, tmp_path: Path) -> None:
    server.files["ml.zip"] = zipped(**{"one/a": b"1", "two/a": b"2"})
    fetch(published(server, "ml.zip", name="ml.zip"), tmp_path)
    assert ((tmp_path / "one/a").read_bytes(), (tmp_path / "two/a").read_bytes()) == (b"1", b"2")


@pytest.mark.parametrize("hostile", ["../escaped", "/tmp/escaped", "a/../../escaped", "..\\escaped", "C:escaped"])
def test_an_archive_that_reaches_outside_is_refused_whole(server: FileServer, tmp_path: Path, hostile: str) -> None:
    server.files["ml.zip"] = zipped(**{"good": b"g", hostile: b"bad"})
    with pytest.raises(InputError, match=r"which would land outside .* nothing was unpacked"):
        fetch(published(server, "ml.zip", name="ml.zip"), tmp_path / "to")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["ml.zip", "ml.zip.sha256", "to"]


def test_an_archive_with_a_link_is_refused(server: FileServer, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc")
    server.files["ml.zip"] = buffer.getvalue()
    with pytest.raises(InputError, match="which would land outside"):
        fetch(published(server, "ml.zip", name="ml.zip"), tmp_path)


def test_a_damaged_archive_is_told(server: FileServer, tmp_path: Path) -> None:
    server.files["ml.zip"] = zipped(a=b"1" * 100)[:-10]
    with pytest.raises(InputError, match=r"ml\.zip is a damaged archive"):
        fetch(published(server, "ml.zip", name="ml.zip"), tmp_path)


def test_the_program_lists_fetches_and_prepares(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{user}::{item}::5::{user * 100 + item}" for user in range(1, 5) for item in range(1, 7)]
    movies = [f"{item}::Film {item} (1999)::Drama" for item in range(1, 7)]
    tables = {"ml/ratings.dat": "\n".join(rows).encode(), "ml/movies.dat": "\n".join(movies).encode()}
    server.files["ml.zip"] = zipped(**tables)
    file = PublishedFile("ml.zip", (server.address("ml.zip"),), digest(server.files["ml.zip"]))
    small = PublishedSet("ml-small", "Films", (file,), "movielens", "For tests", ("min_rating=3",))
    monkeypatch.setattr("allrec.data.published.PUBLISHED", (small,))
    assert "ml-small  Films" in call("data", "list")
    monkeypatch.chdir(tmp_path)
    told = call("data", "fetch", "ml-small")
    assert "its checksum is the published one" in told
    advises(told, "allrec prepare {} --format {} --out data/{}{}")
    command = told.partition("Next: allrec ")[2].split()
    assert command[:2] == ["prepare", "downloads/ml-small"]
    call(*command)
    assert (tmp_path / "data" / "ml-small" / "dataset.json").is_file()


def test_reviews_and_metadata_prepare_beside_their_records(server: FileServer, tmp_path: Path) -> None:
    review = '{"user_id": "u%d", "parent_asin": "i%d", "timestamp": %d, "rating": 5.0}\n'
    server.files["A.jsonl.gz"] = gzip.compress("".join(review % (n // 4, n % 5, n) for n in range(20)).encode())
    item = '{"parent_asin": "i%d", "title": "Item %d", "description": []}\n'
    server.files["meta_A.jsonl.gz"] = gzip.compress("".join(item % (n, n) for n in range(5)).encode())
    files = tuple(PublishedFile(name, (server.address(name),)) for name in ("A.jsonl.gz", "meta_A.jsonl.gz"))
    fetch(PublishedSet("a", "", files, "amazon-2023", ""), tmp_path / "from")
    assert prepare(tmp_path / "from", tmp_path / "out").num_interactions == 20


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown data set 'ml-1x': did you mean 'ml-1m'"):
        call("data", "fetch", "ml-1x")
