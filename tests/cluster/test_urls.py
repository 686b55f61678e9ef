"""Runs and recommendations behind URLs: an S3 of this machine in place of the cloud's."""

import errno
import socket
import time
from contextlib import suppress

import pytest
from tests.remedies import refused

from allrec import storage, uploads
from allrec.cli.commands import app
from allrec.config import dump_recipe
from allrec.data import load_dataset
from allrec.errors import InputError
from allrec.files import read_json
from allrec.parallel import Processes, ThisProcess
from allrec.recommender import AllRec
from allrec.uploads import changed_at_end, put_at_end
from cluster.shard_work import Upper, lines_of, write_shards
from worlds import FUSED, make_world

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")
fsspec = pytest.importorskip("fsspec")
typer_testing = pytest.importorskip("typer.testing")

# Of the libraries of AWS alone, which set their own clocks and sockets.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


class Killed(BaseException):
    """No error of a store: those are told in another class."""


@pytest.fixture(scope="module")
def bucket():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    patch = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket"
    server.stop()
    patch.undo()


def bytes_of(url):
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    return {path.rsplit("/", 1)[1]: system.cat_file(path) for path in system.find(url)}


def write_half(location):
    with storage.whole_file(location) as path:
        path.write_text("half")
        raise RuntimeError("midway")


def test_a_file_is_put_whole_or_not_at_all(bucket):
    with storage.whole_file(f"{bucket}/a/b.txt") as path:
        path.write_text("whole")
        assert not storage.exists(f"{bucket}/a/b.txt")
    assert storage.exists(f"{bucket}/a/b.txt")
    with storage.local_file(f"{bucket}/a/b.txt") as path:
        assert path.read_text() == "whole"
    with pytest.raises(RuntimeError, match="midway"):
        write_half(f"{bucket}/a/c.txt")
    assert not storage.exists(f"{bucket}/a/c.txt")
    assert storage.is_used(f"{bucket}/a")
    storage.remove(f"{bucket}/a")
    assert not storage.is_used(f"{bucket}/a")


def test_what_is_done_behind_a_url_is_not_done_again(bucket, tmp_path):
    shards, log = write_shards(tmp_path / "in", 3), tmp_path / "log"
    work = Upper(f"{bucket}/shards", str(log))
    list(ThisProcess().map(work, shards[:2]))
    places = list(ThisProcess().map(work, shards))
    assert sorted(line.split()[0] for line in lines_of(log)) == ["0.txt", "1.txt", "2.txt"]
    assert sorted(bytes_of(f"{bucket}/shards")) == sorted(place.rsplit("/", 1)[1] for place in places)
    assert set(bytes_of(f"{bucket}/shards").values()) == {b"SHARD 0", b"SHARD 1", b"SHARD 2"}


def test_a_folder_is_copied_once_for_what_is_there(bucket, tmp_path):
    storage.write_json(f"{bucket}/folder/deep/one.json", {"a": 1})
    first = storage.local_folder(f"{bucket}/folder", tmp_path)
    assert storage.read_json(str(first / "deep" / "one.json")) == {"a": 1}
    assert storage.local_folder(f"{bucket}/folder", tmp_path) == first
    storage.write_json(f"{bucket}/folder/deep/one.json", {"a": 2})
    second = storage.local_folder(f"{bucket}/folder", tmp_path)
    assert storage.read_json(str(second / "deep" / "one.json")) == {"a": 2}
    assert sorted(tmp_path.iterdir()) == sorted([first, second])
    with refused("holds no file. Is this the URL that you meant?"):
        storage.local_folder(f"{bucket}/foldre", tmp_path)
    assert storage.local_folder(f"{bucket}/folder", tmp_path) == second


def test_a_copy_goes_to_another_cache_where_it_cannot_be_written(bucket, tmp_path, monkeypatch):
    storage.write_json(f"{bucket}/copied/one.json", {"a": 1})

    def full(path, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(tmp_path), "rename", full)
        with refused("could not be written. Make its folder usable, or set ALLREC_CACHE to another."):
            storage.local_folder(f"{bucket}/copied", tmp_path / "full")
    assert not list((tmp_path / "full").rglob("*.json"))
    copy = storage.local_folder(f"{bucket}/copied", tmp_path / "other")
    assert storage.read_json(str(copy / "one.json")) == {"a": 1}


def test_a_url_that_nothing_reads_is_said():
    with pytest.raises(InputError, match=r"^xyz://a/b: .* Give a path"):
        storage.exists("xyz://a/b")


def test_a_store_that_refuses_or_does_not_answer_is_told_in_a_sentence(bucket, tmp_path, monkeypatch):
    advice = "Check that it exists, the store's endpoint, and the credentials."
    with refused(advice) as caught:
        storage.write_json("s3://elsewhere/file.json", {})
    assert str(caught.value).startswith("s3://elsewhere/file.json: FileNotFoundError: The specified bucket does not")
    with refused(advice):
        storage.local_folder("s3://elsewhere/run", tmp_path)
    with refused("holds no file. Is this the URL that you meant?"):
        storage.local_folder(f"{bucket}/nothing", tmp_path)

    class Silent:
        def exists(self, path):
            raise TimeoutError

        def get_file(self, source, target):
            raise OSError(errno.ENOSPC, "No space left on device", target)

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda location: (Silent(), location))
    with pytest.raises(InputError, match=r"^s3://bucket/run: TimeoutError\. Check that it exists"):
        storage.remove("s3://bucket/run")
    # A disk here is not the store's business.
    with pytest.raises(OSError, match="No space left"), storage.local_file("s3://bucket/run"):
        pass


def test_a_run_and_its_recommendations_may_lie_behind_urls(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("ALLREC_CACHE", str(tmp_path / "cache" / "texts"))
    dataset, _, recipe = make_world(tmp_path, (*FUSED, "llm.enabled=false"))
    system = AllRec.train(dataset, run=tmp_path / "run", recipe=recipe, is_evaluated=False)
    system.recommend_all(tmp_path / "local", k=3, users_a_part=20)
    fsspec.filesystem("s3").put(str(tmp_path / "run"), "bucket/run", recursive=True)
    options = ["--out", f"{bucket}/out", "--k", "3", "--users-a-part", "20"]
    result = typer_testing.CliRunner().invoke(app, ["recommend-all", f"{bucket}/run", *options])
    assert result.exit_code == 0, result.output
    local = {path.name: path.read_bytes() for path in (tmp_path / "local" / "parts").iterdir()}
    assert bytes_of(f"{bucket}/out/parts") == local
    assert len(local) == 4
    AllRec.from_pretrained(f"{bucket}/run").recommend_all(f"{bucket}/again", k=3, users_a_part=20, engine=Processes(1))
    assert bytes_of(f"{bucket}/again/parts") == local
    assert not storage.is_used(f"{bucket}/again/users")
    assert not storage.is_used(f"{bucket}/again/shared")


def run_program(*arguments):
    result = typer_testing.CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output + str(result.exception)


def test_prepare_and_train_read_and_write_behind_urls(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("ALLREC_CACHE", str(tmp_path / "cache"))
    recipe = make_world(tmp_path, ("llm.enabled=false",))[2]
    source, system = tmp_path / "source", fsspec.filesystem("s3")
    tables = {path.name.partition(".")[0]: path for path in source.iterdir()}
    system.put_file(str(tables["interactions"]), f"bucket/tables/{tables['interactions'].name}")
    system.put_file(str(tables["items"]), f"bucket/other/{tables['items'].name}")
    given = ["--items", f"{bucket}/other/{tables['items'].name}", "--set", "name=world"]
    interactions = f"{bucket}/tables/{tables['interactions'].name}"
    for _ in range(2):
        run_program("prepare", interactions, "--out", f"{bucket}/data", *given)
    run_program("prepare", tables["interactions"], "--items", tables["items"], *given[2:], "--out", tmp_path / "data")
    local, remote = load_dataset(tmp_path / "data"), storage.local_folder(f"{bucket}/data", tmp_path / "copies")
    assert load_dataset(remote).sha256 == local.sha256
    assert {path.name for path in remote.iterdir()} == {path.name for path in (tmp_path / "data").iterdir()}

    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    options = ["--recipe", tmp_path / "recipe.toml", "--set", "llm.enabled=false"]
    run_program("train", f"{bucket}/data", "--run", f"{bucket}/trained", *options)
    run_program("train", tmp_path / "data", "--run", tmp_path / "trained", *options)
    here, there = (AllRec.from_pretrained(run) for run in (tmp_path / "trained", f"{bucket}/trained"))
    assert there.run.manifest["stages"]["backbone"]["sha256"] == here.run.manifest["stages"]["backbone"]["sha256"]
    assert there.recommend(user=local.user_ids[0], k=3) == here.recommend(user=local.user_ids[0], k=3)
    assert not list((tmp_path / "cache" / "runs" / "written").iterdir())

    run_program("recommend", f"{bucket}/trained", "--user", local.user_ids[0], "--json")
    before = read_json(there.run.path / "metrics.json")["results"]
    run_program("evaluate", f"{bucket}/trained", f"{bucket}/data", "--protocol", "full-repeat")
    changed = AllRec.from_pretrained(f"{bucket}/trained").run
    after = read_json(changed.path / "metrics.json")["results"]
    assert {row["protocol"] for row in after} - {row["protocol"] for row in before} == {"full-repeat"}
    assert changed.manifest["stages"]["backbone"] == there.run.manifest["stages"]["backbone"]
    assert not list((tmp_path / "cache" / "runs" / "changed").iterdir())


def test_a_run_that_another_program_has_put_there_is_not_changed(bucket, tmp_path):
    fsspec.filesystem("s3").pipe_file("bucket/plain/manifest.json", b"{}")
    changed = changed_at_end(f"{bucket}/plain", tmp_path)
    with refused("{} is no whole folder that allrec has put there. Copy it here, and give that path."), changed:
        pass
    # Followed: what is copied here can be changed.
    with changed_at_end(str(storage.local_folder(f"{bucket}/plain", tmp_path)), tmp_path) as folder:
        assert (folder / "manifest.json").read_text() == "{}"


def test_a_change_that_was_killed_leaves_what_was_there(bucket, tmp_path):
    put(f"{bucket}/changing", tmp_path / "put", "old")
    for text in ("half", "new"):
        with suppress(Killed), changed_at_end(f"{bucket}/changing", tmp_path / "changed") as folder:
            assert {path.name: path.read_text() for path in folder.iterdir()} == {"a.json": "old", "b.json": "old"}
            (folder / "a.json").write_text(text)
            if text == "half":
                raise Killed
        expected = {"a.json": "new" if text == "new" else "old", "b.json": "old"}
        assert texts_of(f"{bucket}/changing", tmp_path / "copies") == expected


def put(location, cache, text="{}", **given):
    with put_at_end(location, cache, **given) as folder:
        folder.mkdir(exist_ok=True)
        for name in ("a.json", "b.json"):
            (folder / name).write_text(text)


def texts_of(location, cache):
    return {path.name: path.read_text() for path in storage.local_folder(location, cache).iterdir()}


def test_what_is_behind_a_url_is_left_alone(bucket, tmp_path):
    storage.write_json(f"{bucket}/used/mine.json", {})
    with refused("is in use, expected nothing there. Give another URL."):
        put(f"{bucket}/used", tmp_path, is_replaced=True)
    assert set(bytes_of(f"{bucket}/used")) == {"mine.json"}
    put(f"{bucket}/unused", tmp_path)
    assert texts_of(f"{bucket}/unused", tmp_path / "copies") == {"a.json": "{}", "b.json": "{}"}
    with pytest.raises(InputError, match="is in use, expected nothing there"):
        put(f"{bucket}/unused", tmp_path)
    put(f"{bucket}/unused", tmp_path, "[]", is_replaced=True)
    assert texts_of(f"{bucket}/unused", tmp_path / "copies") == {"a.json": "[]", "b.json": "[]"}
    assert sorted(bytes_of(f"{bucket}/unused")) == ["a.json", "b.json", storage.CURRENT]


def test_whenever_a_replacement_is_killed_the_old_folder_is_there_or_the_new_one(bucket, tmp_path, monkeypatch):
    system, found, step = fsspec.core.url_to_fs(bucket)[0], [], 0
    while not found or found[-1] is not None:
        location, cache = f"{bucket}/replaced/{step}", tmp_path / str(step)
        put(location, cache, "old")
        with monkeypatch.context() as patched:
            left, step = iter(range(step)), step + 1
            for name in ("put_file", "rm"):
                change = getattr(system, name)
                patched.setattr(system, name, lambda *given, change=change, left=left, **named: (
                    change(*given, **named) if next(left, None) is not None else killed()
                ))  # fmt: skip
            try:
                put(location, cache, "new", is_replaced=True)
                found.append(None)
            except Killed:
                found.append(texts_of(location, tmp_path / "copies"))
        put(location, cache, "new", is_replaced=True)
        assert texts_of(location, tmp_path / "copies") == {"a.json": "new", "b.json": "new"}
        assert sorted(bytes_of(location)) == ["a.json", "b.json", storage.CURRENT]
    old, new = ({"a.json": text, "b.json": text} for text in ("old", "new"))
    # Two files and what names them are put, and then the old ones are removed.
    assert found == [old, old, old, new, None]


def killed():
    raise Killed


def test_what_a_killed_upload_has_left_is_put_again(bucket, tmp_path, monkeypatch):
    location = f"{bucket}/stopped"
    system, _ = fsspec.core.url_to_fs(location)
    put_file = system.put_file

    def stopped(source, target):
        if source.endswith("b.json"):
            raise Killed
        put_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(system, "put_file", stopped)
        with pytest.raises(Killed):
            put(location, tmp_path)
    assert set(bytes_of(location)) == {"a.json"}
    put(location, tmp_path)
    assert set(bytes_of(location)) == {"a.json", "b.json", storage.CURRENT}
    assert not list(tmp_path.rglob("*.json"))


def test_another_machine_goes_on_with_a_training_whose_machine_is_gone(bucket, tmp_path, monkeypatch):
    dataset, _, recipe = make_world(tmp_path, ("llm.enabled=false",))
    location, system = f"{bucket}/moved", fsspec.core.url_to_fs(bucket)[0]
    monkeypatch.setattr(uploads, "PUSH_EVERY", 0.3)
    given = {"recipe": recipe, "is_evaluated": False}
    AllRec.train(dataset, run=tmp_path / "whole", cache=tmp_path / "texts", **given)
    with monkeypatch.context() as patched:

        def ends(stage, share, values):
            if stage == "alignment" and values["step"] == 3:
                wait_until(lambda: is_pushed(f"{location}/begun"))
                patched.setattr(system, "put_file", killed)
                raise Killed

        with pytest.raises(Killed), put_at_end(location, tmp_path / "first", resumed_by="manifest.json") as folder:
            AllRec.train(dataset, run=folder, cache=tmp_path / "texts", observer=ends, **given)
    first = read_json(folder / "manifest.json")["stages"]
    monkeypatch.setenv("ALLREC_CACHE", str(tmp_path / "second"))
    result = typer_testing.CliRunner().invoke(app, ["train", str(dataset), "--run", location])
    assert "Go on with it: --resume" in str(result.exception)
    run_program("train", dataset, "--run", location, "--resume")
    whole, resumed = (AllRec.from_pretrained(run).run.manifest["stages"] for run in (tmp_path / "whole", location))
    assert resumed["backbone"] == first["backbone"]
    assert first["alignment"]["state"] == "running"
    assert resumed["alignment"]["sha256"]["model.safetensors"] == whole["alignment"]["sha256"]["model.safetensors"]
    assert "begun" not in storage.names_in(location)


def is_pushed(begun):
    """Whether the bucket knows of a stage that is done and of one under way; a pass of pushes may begin before it."""
    manifest, checkpoint = f"{begun}/manifest.json", f"{begun}/alignment/checkpoint.safetensors"
    is_there = storage.exists(manifest) and storage.exists(checkpoint)
    return is_there and "alignment" in storage.read_json(manifest)["stages"]


def wait_until(is_so):
    end = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)
