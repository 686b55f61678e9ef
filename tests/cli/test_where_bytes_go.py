"""Disks that are full and outputs that are closed end the program with one sentence, and what is there stays whole."""

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.remedies import advises

from allrec.config import dump_recipe
from allrec.data import load_dataset
from allrec.files import sha256_file
from allrec.runs.stages import EVALUATE, STAGES
from worlds import FUSED, READ_OUT, further, make_world

MAIN = "from allrec.cli.commands import main; main()"
STAGES_THAT_WRITE = [name for name in STAGES if name != "refit"]
FULL_IN_EACH_STAGE = """
import os, resource, sys
from contextlib import contextmanager
from pathlib import Path
from allrec.runs.run_folder import RunFolder
usual, most = RunFolder.stage, resource.getrlimit(resource.RLIMIT_FSIZE)
@contextmanager
def stage(run, name):
    with usual(run, name) as folder:
        if name == full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, most[1]))
        yield folder
RunFolder.stage = stage
from allrec.cli.commands import main
for full in os.environ["ALLREC_TEST_FULL_STAGES"].split(","):
    try:
        main()
    except SystemExit as end:
        left = list(Path(os.environ["ALLREC_TEST_FOLDER"]).rglob("*.part"))
        print(f"== {full} {end.code} {len(left)}", file=sys.stderr)
    resource.setrlimit(resource.RLIMIT_FSIZE, most)
"""
"""Trains with a disk that is full in one stage after the other, each time going on; the code of each end is told."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    # The precision is given, for a trial of which is faster may end one way or the other.
    more = ("fusion.evidence.ensemble=2", 'llm.published.dtype="float32"')
    _, _, recipe = make_world(folder, (*FUSED, *READ_OUT, *further(folder / "llm"), *more))
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    return folder


def run(
    *arguments: object, max_bytes: int | None = None, program: str = MAIN, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs the program in a process of its own, in which no file may grow beyond ``max_bytes``."""

    def limit() -> None:
        if max_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (max_bytes, max_bytes))

    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | options.pop("environment", {})
    command = [sys.executable, "-c", program, *(str(argument) for argument in arguments)]
    streams = {"stdout": subprocess.PIPE} | options
    return subprocess.run(
        command, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=limit, check=False, **streams
    )


def check_refused(result: subprocess.CompletedProcess[str], place: str) -> None:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("allrec: ")]
    assert place in sentence
    assert "File too large" in sentence or "No space left on device" in sentence


@pytest.mark.parametrize("max_bytes", [0, 4_000])
def test_prepare_where_nothing_can_grow(world: Path, tmp_path: Path, max_bytes: int) -> None:
    check_refused(run("prepare", world / "source", "--out", tmp_path / "out", max_bytes=max_bytes), "/out")
    assert list(tmp_path.iterdir()) == []


def test_prepare_leaves_the_older_data_set(world: Path, tmp_path: Path) -> None:
    assert run("prepare", world / "source", "--out", tmp_path / "out").returncode == 0
    before = load_dataset(tmp_path / "out").sha256
    check_refused(run("prepare", world / "source", "--out", tmp_path / "out", max_bytes=4_000), "/out")
    assert load_dataset(tmp_path / "out").sha256 == before


@pytest.fixture(scope="module")
def whole(world: Path) -> dict[str, str]:
    assert run(*training(world, world / "whole"), environment=cache(world)).returncode == 0
    return contents(world / "whole")


def training(world: Path, folder: Path) -> list[object]:
    recipe, llm = world / "recipe.toml", world / "llm"
    return ["train", world / "dataset", "--run", folder, "--recipe", recipe, "--llm", llm]


def cache(world: Path) -> dict[str, str]:
    return {"ALLREC_CACHE": str(world / "cache")}


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): sha256_file(file) for file in sorted(folder.rglob("*.safetensors"))}


@pytest.mark.slow
def test_every_stage_without_room_says_so_and_goes_on_afterwards(
    world: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    check_refused(run(*training(world, tmp_path / "run"), environment=cache(world), max_bytes=0), "run/recipe.toml")
    stages = ("catalogue", *STAGES_THAT_WRITE, EVALUATE)
    environment = cache(world) | {"ALLREC_TEST_FULL_STAGES": ",".join(stages), "ALLREC_TEST_FOLDER": str(tmp_path)}
    ended = run(*training(world, tmp_path / "run"), "--resume", environment=environment, program=FULL_IN_EACH_STAGE)
    parts = re.split(r"^== (\S+) (\d+) (\d+)$", ended.stderr, flags=re.MULTILINE)
    told = list(zip(parts[0::4], parts[1::4], parts[2::4], parts[3::4], strict=False))
    assert [stage for _, stage, *_ in told] == list(stages), ended.stderr
    for text, stage, code, num_left in told:
        result = subprocess.CompletedProcess[str]([], int(code), stderr=text)
        check_refused(result, str(tmp_path / "run" / stage))
        assert num_left == "0"
    assert run(*training(world, tmp_path / "run"), "--resume", environment=cache(world)).returncode == 0
    assert contents(tmp_path / "run") == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_full(world: Path, whole: dict[str, str], small_disk: Path) -> None:
    check_refused(run(*training(world, small_disk / "run"), environment=cache(world)), str(small_disk / "run"))
    assert not list(small_disk.rglob("*.part"))
    remount = ["mount", "-o", "remount,size=64m", small_disk]
    subprocess.run(remount, check=True)
    assert run(*training(world, small_disk / "run"), "--resume", environment=cache(world)).returncode == 0
    assert contents(small_disk / "run") == whole


def test_prepare_on_a_disk_that_is_full(world: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=16k", small_disk], check=True)
    check_refused(run("prepare", world / "source", "--out", small_disk / "out"), "/out")
    assert list(small_disk.iterdir()) == []


# Standard output

SHOWS = (["data", "list"], ["recommend"])


def command(shows: list[str], world: Path) -> list[object]:
    if shows[0] == "recommend":
        user = load_dataset(world / "dataset").user_ids[0]
        return ["recommend", world / "whole", "--user", user, "--no-llm", "--json"]
    return [*shows]


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("shows", SHOWS, ids=" ".join)
def test_a_full_standard_output(world: Path, shows: list[str]) -> None:
    with open("/dev/full", "w") as full:
        result = run(*command(shows, world), stdout=full)
    check_refused(result, "standard output")


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("shows", SHOWS, ids=" ".join)
def test_a_pipe_that_nobody_reads(world: Path, shows: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = run(*command(shows, world), stdout=writing)
    os.close(writing)
    assert result.returncode in (0, 1)
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("shows", SHOWS, ids=" ".join)
def test_a_standard_output_that_is_closed(world: Path, shows: list[str]) -> None:
    script = f"import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, '-c', {MAIN!r}, *sys.argv[1:]])"
    arguments = [sys.executable, "-c", script, *map(str, command(shows, world))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(arguments, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr


def test_another_place_is_given_or_the_old_one_made_usable(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id\na,x\na,y\n")
    given = ("prepare", tmp_path / "log.csv", "--out")
    result = run(*given, tmp_path / "log.csv" / "out")
    advises(result.stderr, "allrec: {}: {}. Make it usable, or give another place.\n")
    assert result.returncode == 2
    assert run(*given, tmp_path / "out").returncode == 0
    (tmp_path / "file").write_text("")
    assert run(*given, tmp_path / "file" / "out").returncode == 2
    (tmp_path / "file").unlink()
    assert run(*given, tmp_path / "file" / "out").returncode == 0


def test_another_output_is_given(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = run("data", "list", stdout=full)
    advises(result.stderr, "allrec: standard output: {}. Make it usable, or give another place.\n")
    with (tmp_path / "shown").open("w") as file:
        assert run("data", "list", stdout=file).returncode == 0
    assert (tmp_path / "shown").read_text()


STOPPED = """
import os, signal, sys
from allrec.training import loop
usual = loop._step
def step(state, *arguments):
    if state.progress.step == 4 and "--resume" not in sys.argv:
        os.kill(os.getpid(), signal.SIGINT)
    return usual(state, *arguments)
loop._step = step
from allrec.cli.commands import main
main()
"""


def test_what_was_stopped_is_resumed(world: Path, whole: dict[str, str], tmp_path: Path) -> None:
    result = run(*training(world, tmp_path / "run"), environment=cache(world), program=STOPPED)
    assert result.returncode == 130
    advises(
        result.stderr,
        "with --resume train, scenario, compare and baselines go on; recommend-all, refresh and data fetch do when the "
        "same command is given again.\n",
    )
    result = run(*training(world, tmp_path / "run"), "--resume", environment=cache(world), program=STOPPED)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "run") == whole


def test_an_output_of_few_letters(tmp_path: Path) -> None:
    rows = [f"u{n % 3},i{n % 5},{n}" for n in range(30)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]))
    few = {"PYTHONIOENCODING": "cp1252"}
    result = run("prepare", "log.csv", "--out", "out", "--set", "name=日本", cwd=tmp_path, environment=few)
    assert (result.returncode, result.stderr.count("Traceback")) == (0, 0), result.stderr
    result = run("prepare", "日本.csv", "--out", "out", cwd=tmp_path, environment=few)
    assert result.returncode == 2
    assert "no such file or folder: \\u65e5\\u672c.csv" in result.stderr


def test_json_loses_nothing_to_an_output_of_few_letters() -> None:
    script = "from allrec.cli.commands import open_streams, print_json; open_streams(); print_json({'title': '日本 é'})"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "cp1252"}
    shown = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True).stdout
    assert json.loads(shown) == {"title": "日本 é"}
    utf8 = environment | {"PYTHONIOENCODING": "utf-8"}
    shown = subprocess.run([sys.executable, "-c", script], env=utf8, capture_output=True, check=True).stdout
    assert "日本" in shown.decode()
