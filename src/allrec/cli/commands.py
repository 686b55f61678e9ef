"""The program: its commands and their options. Heavy modules are imported by the command that needs them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from allrec.data.protocols import EvaluationProtocol
from allrec.errors import FULL, InputError

if TYPE_CHECKING:
    from allrec import parallel
    from allrec.config import Recipe
    from allrec.data.config import PrepareConfig
    from allrec.data.dataset import Dataset
    from allrec.parallel import Observer
    from allrec.recommender import AllRec

DEFAULT_RECIPE = "a-llmrec"

app = typer.Typer(
    name="allrec",
    help="An all-round recommender: what people who act alike choose, and what a language model knows of things.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

data = typer.Typer(name="data", help="Published data sets: list them, fetch one.", no_args_is_help=True)
app.add_typer(data)

Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Change a key of the recipe, such as seed=1; may be repeated.")
]
Llm = Annotated[
    str | None,
    typer.Option(help="A causal language model: name, folder, GGUF file or a packaged one; the recipe's if left out."),
]
Names = Annotated[
    str | None, typer.Option(help="The columns of a file without a header, with commas: user_id,item_id,timestamp.")
]
ItemNames = Annotated[str | None, typer.Option(help="The same for the table of items: item_id,title.")]
Separator = Annotated[str | None, typer.Option(help="What separates fields; detected if left out.")]
TimeFormat = Annotated[
    str | None,
    typer.Option(help="How times are written: seconds, milliseconds, day-first, %d.%m.%Y, ...; detected if left out."),
]
MaxRejected = Annotated[
    float | None, typer.Option(help="The share of the rows that may be unreadable; 0.05 if left out.", metavar="SHARE")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the accelerator where there is one if left out.")]
Database = Annotated[
    str | None,
    typer.Option(
        envvar="ALLREC_DATABASE", help="sqlite:///PATH or postgresql://...; a file next to the run if left out."
    ),
]
Engine = Annotated[
    str, typer.Option(help="here, processes (of this machine), ray://local, ray://auto, or ray://HOST:PORT.")
]
SeedEngine = Annotated[
    str, typer.Option(help="Trains seeds at the same time: processes, ray://local, ray://auto or ray://HOST:PORT.")
]
Workers = Annotated[int, typer.Option(min=1, help="Workers at a time, each with a model in memory of its own.")]
Partitions = Annotated[
    int, typer.Option(min=1, help="Parts, one at a time in memory, for more than memory holds; the same bytes.")
]
Run = Annotated[Path, typer.Argument(help="A run folder, written by train.", metavar="RUN")]
RunOrUrl = Annotated[
    str, typer.Argument(help="A run folder, written by train, or its URL, such as s3://BUCKET/RUN.", metavar="RUN")
]
NewRun = Annotated[Path, typer.Option(help="The run folder to write.")]
DatasetFolder = Annotated[str, typer.Argument(help="A data set folder, written by prepare, or its URL.")]
RecipeName = Annotated[str | None, typer.Option(help="A recipe's name, or a TOML file; a-llmrec if left out.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue where the run stopped.")]
User = Annotated[str | None, typer.Option(help="A known user's id.")]
History = Annotated[str | None, typer.Option(help="Item ids, oldest first, with commas, quoted as in CSV.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main() -> None:
    """Runs the program; a mistake that the user can mend ends it with one sentence and exit code 2."""
    # Set before torch is imported: tokenizers would warn of every fork, DDP of every part without a branch.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    open_streams()
    raise SystemExit(flushed(run_app()))


def run_app() -> int | str | None:
    """Runs the program and returns its exit code."""
    from allrec.cli.progress import noting

    try:
        with noting():
            app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            say_stopped()
        return end.code
    except InputError as error:
        sys.stderr.write(f"allrec: {error}\n")
        return 2
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        place = "standard output" if error.filename is None else error.filename
        sys.stderr.write(f"allrec: {place}: {error.strerror}. Make it usable, or give another place.\n")
        return 2
    except KeyboardInterrupt:
        say_stopped()
        return INTERRUPTED
    return 0


def say_stopped() -> None:
    """Says, after Ctrl-C, how to go on; within a command typer turns that into an exit code."""
    sys.stderr.write(
        "allrec: stopped. Nothing that was finished is lost: with --resume train, scenario, compare and baselines go "
        "on; recommend-all, refresh and data fetch do when the same command is given again.\n"
    )


def open_streams() -> None:
    """Makes standard output and error accept any text: closed ones drop it, others replace what they cannot encode."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")


def flushed(code: int | str | None) -> int | str | None:
    """Flushes standard output, and returns the exit code: 2 where that fails, else the given one."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # The interpreter would flush once more at its end and report an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return code
        sys.stderr.write(f"allrec: standard output: {error.strerror}. Make it usable, or give another place.\n")
        return 2
    return code


def print_json(value: object) -> None:
    """Prints a value as JSON; characters that standard output cannot show are escaped."""
    is_utf = (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(value, ensure_ascii=not is_utf) + "\n")


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder to write; it may be there from an earlier quickstart.")] = Path(
        "runs/demo"
    ),
    users: Annotated[int, typer.Option(min=50, help="Users of the simulated marketplace.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything.")] = 0,
    llm: Llm = None,
    sets: Sets = None,
) -> None:
    """Simulate a marketplace, prepare it, train on it, and show scores and recommendations. No network is needed."""
    from allrec.cli import tables
    from allrec.cli.progress import noting, say
    from allrec.config import load_recipe
    from allrec.data import PrepareConfig, SimulationConfig, load_dataset, simulate
    from allrec.data.dataset import is_dataset
    from allrec.report.figures import has_matplotlib
    from allrec.report.page import PAGE, write_report
    from allrec.runs.run_folder import MANIFEST

    source, prepared, run = out / "source", out / "dataset", out / "run"
    say(f"A simulated marketplace of {users} users goes through the whole pipeline, into {out}.")
    if not is_dataset(prepared):
        simulate(source, SimulationConfig(num_users=users, seed=seed))
        with noting():
            _prepare(source, prepared, None, PrepareConfig(name="simulated marketplace", seed=seed))
    recipe = load_recipe("quickstart", (f"seed={seed}", *(sets or ())))
    system = _train(prepared, run, recipe, resume=(run / MANIFEST).is_file(), llm=llm)
    dataset = load_dataset(prepared)
    tables.show_users(system, dataset)
    tables.show_evidence(system, dataset.user_ids[dataset.targets["test"].users[0]])
    say(f"\nMore: allrec recommend {run} --history ID,ID   (ids are in {source / 'items.jsonl'})")
    if has_matplotlib():
        say(f"Figures and tables: {write_report(run, out=out / PAGE)}")


@data.command("list")
def list_published() -> None:
    """List the published data sets that can be fetched."""
    from itertools import groupby

    from allrec.cli.progress import number, say
    from allrec.data import published

    width = max(len(one.name) for one in published.PUBLISHED)
    for terms, group in groupby(published.PUBLISHED, key=lambda one: one.terms):
        say(f"\n{terms}")
        for one in group:
            size = "" if one.size is None else f" ({number(one.size / 1e6)} MB)"
            say(f"  {one.name:{width}}  {one.about}{size}")


@data.command("fetch")
def fetch_published(
    name: Annotated[str, typer.Argument(help="A published data set, as data list names it.", metavar="NAME")],
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder to write; downloads/NAME if left out.", metavar="DIR")
    ] = None,
) -> None:
    """Fetch a published data set, checked by its checksum; run it again to continue a broken fetch."""
    from allrec.cli.progress import observing, say
    from allrec.cli.tables import show_fetched
    from allrec.data.download import fetch
    from allrec.data.published import find_published

    published, folder = find_published(name), to or Path("downloads") / name
    say(f"{published.about}. {published.terms}.")
    with observing() as observer:

        def on_bytes(file: str, done: int, total: int | None) -> None:
            observer(file, done / total if total else 0.0, {"bytes": float(done)})

        fetched = fetch(published, folder, on_bytes)
    show_fetched(published, folder, fetched)


@app.command()
def prepare(
    source: Annotated[
        str, typer.Argument(help="A table of interactions, or a folder with interactions.* and items.*; or its URL.")
    ],
    out: Annotated[str, typer.Option(help="The data set folder to write, or its URL, such as s3://BUCKET/DATA.")],
    items: Annotated[
        str | None, typer.Option(help="The table of items, where it is not in the folder of the interactions.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="The source's format; guessed if left out.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any option of preparation, such as min_rating=3; may be repeated."),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(help="Where a column's name is unknown: user_id=customer; may be repeated."),
    ] = None,
    item_column: Annotated[list[str] | None, typer.Option(help="The same for the table of items: title=name.")] = None,
    names: Names = None,
    item_names: ItemNames = None,
    separator: Separator = None,
    time_format: TimeFormat = None,
    max_rejected: MaxRejected = None,
    partitions: Partitions = 1,
    engine: Engine = "here",
    workers: Workers = 1,
) -> None:
    """Clean, index and split interactions and items into a data set folder."""
    from allrec.data.ids import split_ids

    config = _prepare_config(
        sets, format=format, separator=separator, time_format=time_format, max_rejected=max_rejected,
        columns=_pairs(column, "--column") or None, item_columns=_pairs(item_column, "--item-column") or None,
        names=names and tuple(split_ids(names)), item_names=item_names and tuple(split_ids(item_names)),
    )  # fmt: skip
    _prepare_from(source, out, items, config, **_parted(partitions, engine, workers))


@app.command()
def train(
    dataset: DatasetFolder,
    run: Annotated[str, typer.Option(help="The run folder to write, or its URL, such as s3://BUCKET/RUN.")],
    recipe: RecipeName = None,
    llm: Llm = None,
    sets: Sets = None,
    resume: Resume = False,
    device: Device = None,
    engine: Engine = "here",
    workers: Workers = 1,
) -> None:
    """Train a recipe's stages and evaluate them on validation and test; several workers share the three stages."""
    from allrec.cli.engines import open_group
    from allrec.runs.run_folder import MANIFEST
    from allrec.uploads import put_at_end

    group = open_group(engine, workers)
    with put_at_end(run, _cache("runs") / "written", resumed_by=MANIFEST) as folder:
        chosen = _recipe(folder, recipe, sets, resume)
        given: dict[str, Any] = {"resume": resume, "llm": llm, "device": device, "group": group}
        _train(_here(dataset), folder, chosen, **given)


@app.command()
def evaluate(
    run: RunOrUrl,
    dataset: Annotated[
        str, typer.Argument(help="The data set that the run was trained on, or its URL; another: cross-domain.")
    ],
    protocol: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(EvaluationProtocol)}; may be repeated.")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="cross-domain, or the one that the run was trained for; that one if left out.")
    ] = None,
    device: Device = None,
) -> None:
    """Evaluate a run again, under other protocols; or rank another data set with it."""
    from allrec.cli import tables
    from allrec.cli.progress import observing
    from allrec.data.dataset import load_dataset
    from allrec.experiments.cross_domain import evaluate_cross_domain
    from allrec.experiments.scenarios import CROSS_DOMAIN, evaluate_scenario
    from allrec.recommender import AllRec, plan_of

    with _changed(run) as folder:
        system = AllRec.from_pretrained(folder, device=device)
        if scenario == CROSS_DOMAIN:
            rows = evaluate_cross_domain(system, load_dataset(_here(dataset)), protocols=protocol or ())
            tables.show_foreign(rows, system.run)
            return
        recipe = system.run.recipe()
        if protocol:
            values = recipe.evaluation.model_dump() | {"protocols": protocol}
            recipe = recipe.changed(evaluation=type(recipe.evaluation)(**values))
        with observing() as observer:
            own = system.run.manifest["dataset"].get("scenario", "standard")
            plan = plan_of(recipe, folder / "evaluate", observer)
            evaluate_scenario(system, _here(dataset), scenario or own, plan)
        tables.show_results(system.run)


@app.command()
def scenario(
    dataset: DatasetFolder,
    scenario: Annotated[
        str,
        typer.Option(help="cold-users, cold-users-N, few-shot-N, unseen or global-time; N is a number of users."),
    ],
    out: NewRun,
    recipe: RecipeName = None,
    llm: Llm = None,
    sets: Sets = None,
    resume: Resume = False,
    device: Device = None,
) -> None:
    """Train a recipe without what a scenario holds out, and evaluate it on just that."""
    from allrec.cli.progress import observing
    from allrec.cli.tables import show_results
    from allrec.experiments.scenarios import train_scenario

    chosen = _recipe(out, recipe, sets, resume)
    with observing() as observer:
        system = train_scenario(
            _here(dataset), scenario, out, recipe=chosen, llm=llm, resume=resume, device=device, observer=observer
        )
    show_results(system.run)


@app.command()
def diagnose(
    run: RunOrUrl,
    dataset: Annotated[str, typer.Argument(help="The data set that the run was trained on, or its URL.")],
    users: Annotated[int, typer.Option(min=1, help="Test users, a fixed sample.")] = 500,
    orders: Annotated[int, typer.Option(min=1, help="Random orders of each prompt's candidates.")] = 5,
    device: Device = None,
) -> None:
    """Does the order of the history matter, does a candidate's place in the prompt, and are written answers valid?"""
    from allrec.cli.progress import observing, say
    from allrec.cli.tables import show_diagnostics
    from allrec.experiments import diagnostics
    from allrec.recommender import AllRec

    with _changed(run) as folder, observing() as observer:
        system = AllRec.from_pretrained(folder, device=device)
        result = diagnostics.diagnose(system, _here(dataset), num_users=users, num_orders=orders, observer=observer)
    show_diagnostics(result)
    say(f"Written: {run.rstrip('/')}/{diagnostics.DIAGNOSTICS}")


@app.command()
def compare(
    dataset: DatasetFolder,
    out: Annotated[Path, typer.Option(help="The folder to write: runs, tables and report.html.")],
    recipes: Annotated[str, typer.Option(help="Names or TOML files, with commas; the first is tested against.")] = (
        "a-llmrec"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds of each recipe's runs, with commas.")] = "0",
    ablations: Annotated[
        str | None, typer.Option(help="stage1, stage2, readout or fusion: what each part of the first recipe is worth.")
    ] = None,
    backbones: Annotated[
        str | None,
        typer.Option(help="With commas, such as sasrec,gru4rec: each alone, and under the first recipe."),
    ] = None,
    llm: Llm = None,
    sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue where the comparison stopped.")] = False,
    device: Device = None,
    engine: SeedEngine = "here",
    workers: Workers = 1,
) -> None:
    """Train and evaluate recipes over seeds, each shared stage once, and write one table of them all."""
    from allrec.cli.progress import say
    from allrec.cli.tables import show_comparison
    from allrec.experiments.compare import compare as compare_rows
    from allrec.experiments.compare import rows_of
    from allrec.report.page import write_report

    named = tuple(sets or ())
    rows = rows_of(_parts(recipes), ablations=ablations, backbones=_parts(backbones or ""), sets=named)
    given: dict[str, Any] = {
        "seeds": _seeds(seeds), "llm": llm, "resume": resume, "device": device, "engine": _engine(engine, workers)
    }  # fmt: skip
    show_comparison(compare_rows(_here(dataset), rows, out, watch=_watching, **given))
    say(f"Written: {out / 'table.csv'}, {out / 'table.md'}, {write_report(out)}")


@app.command()
def baselines(
    dataset: DatasetFolder,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    seeds: Annotated[str, typer.Option(help="Seeds of what is drawn, with commas.")] = "0",
    resume: Annotated[bool, typer.Option("--resume", help="Continue where the baselines stopped.")] = False,
    engine: SeedEngine = "here",
    workers: Workers = 1,
) -> None:
    """Choose every baseline on validation, rank the test targets with it, and write one table of them all."""
    from allrec.cli.progress import observing, say
    from allrec.cli.tables import show_baselines
    from allrec.experiments.baselines import BASELINES, run_baselines

    given: dict[str, Any] = {"seeds": _seeds(seeds), "resume": resume, "engine": _engine(engine, workers)}
    with observing() as observer:
        result = run_baselines(_here(dataset), out, observer=observer, **given)
    show_baselines(result)
    say(f"Written: {out / BASELINES}")


@app.command()
def report(
    path: Annotated[Path, typer.Argument(help="A run folder, or the folder of a comparison.", metavar="RUN|DIR")],
    out: Annotated[Path | None, typer.Option(help="The file to write; report.html in there if left out.")] = None,
) -> None:
    """Write one self-contained HTML page about a run or a comparison."""
    from allrec.cli.progress import say
    from allrec.report.page import write_report

    say(f"Written: {write_report(path, out=out)}")


@app.command()
def recommend(
    run: RunOrUrl,
    user: User = None,
    history: History = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many.")] = 10,
    candidates: Annotated[str | None, typer.Option(help="Rank these item ids alone, with commas.")] = None,
    with_history: Annotated[bool, typer.Option("--with-history", help="Items of the history may come again.")] = False,
    no_llm: Annotated[bool, typer.Option("--no-llm", help="Leave the language model out: faster.")] = False,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Recommend items to a user, or rank given ones."""
    from allrec.cli.tables import show_recommendations
    from allrec.data.ids import split_ids
    from allrec.recommender import AllRec

    known, listed = (None if ids is None else split_ids(ids) for ids in (history, candidates))
    system = AllRec.from_pretrained(run, device=device)
    if listed is not None:
        recommended = system.rank(listed, user=user, history=known, use_llm=not no_llm)[:k]
    else:
        recommended = system.recommend(user=user, history=known, k=k, with_history=with_history, use_llm=not no_llm)
    if as_json:
        print_json([vars(item) for item in recommended])
    else:
        show_recommendations(system, user, known, recommended)
    if not (no_llm or system.model.has_llm):
        sys.stderr.write("Note: this run has no language model; the other evidence ranks the items.\n")


@app.command("recommend-all")
def recommend_all(
    run: RunOrUrl,
    out: Annotated[str, typer.Option(help="Folder or URL to write; of the same job where it was stopped.")],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many items a user.")] = 10,
    engine: Engine = "here",
    workers: Workers = 1,
    no_llm: Annotated[bool, typer.Option("--no-llm", help="Leave the language model out: faster.")] = False,
    part: Annotated[int, typer.Option("--users-a-part", min=1, help="Users of one file.")] = 4096,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="Accelerators of a task on a cluster; 1 with a language model on one.")
    ] = None,
    device: Device = None,
) -> None:
    """Recommend items to every user, into Parquet files; the same command goes on where it was stopped."""
    from allrec.cli.engines import HERE
    from allrec.cli.progress import noting, observing, say
    from allrec.recommender import AllRec

    chosen = _engine(engine, workers)
    if gpus is not None and engine == HERE:
        raise InputError(f"got --gpus {gpus:g} for the engine here, which has --device. Give another --engine.")
    with noting(), observing() as observer:
        system = AllRec.from_pretrained(run, device=device)
        options: dict[str, Any] = {"engine": chosen, "users_a_part": part, "gpus": gpus}
        done = system.recommend_all(out, k=k, use_llm=not no_llm, observer=observer, **options)
    say(f"Written: {done['users']:,} users in {len(done['parts']):,} files of {out}/parts")


@app.command("add-items")
def add_items(
    run: RunOrUrl,
    items: Annotated[
        Path, typer.Argument(help="JSON lines: item_id, title, description, genres.", metavar="ITEMS.jsonl")
    ],
    device: Device = None,
) -> None:
    """Add new items to a trained run; they can be recommended at once, and nothing is retrained."""
    from allrec.cli.progress import noting, say
    from allrec.data.items import read_new_items
    from allrec.recommender import AllRec

    rows = read_new_items(items)
    with noting(), _changed(run) as folder:
        system = AllRec.from_pretrained(folder, device=device)
        added = system.add_items(rows)
    noun = "item" if len(added) == 1 else "items"
    say(f"{len(added):,} {noun} added to {run}, which has {system.model.catalogue.num_items:,} now.")


@app.command()
def generate(
    run: RunOrUrl,
    task: Annotated[str, typer.Option(help="title or genres.")],
    user: User = None,
    history: History = None,
    candidates: Annotated[
        str | None, typer.Option(help="The prompt lists these item ids, with commas, in place of retrieved ones.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many texts; more than one come of a beam.")] = 1,
    as_json: AsJson = False,
    device: Device = None,
) -> None:
    """Let the language model write a title or genres for a user, marked as in the catalogue or not."""
    from allrec.cli.tables import show_written
    from allrec.data.ids import split_ids
    from allrec.recommender import AllRec

    known, listed = (None if ids is None else split_ids(ids) for ids in (history, candidates))
    system = AllRec.from_pretrained(run, device=device)
    written = system.generate(user=user, history=known, task=task, candidates=listed, k=k)  # type: ignore[arg-type]
    if as_json:
        print_json([vars(text) for text in written])
    else:
        show_written(written)


@app.command()
def serve(
    run: Run,
    host: Annotated[str, typer.Option(help="Address to listen at; another than loopback needs --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8000,
    database: Database = None,
    keys: Annotated[bool, typer.Option("--keys", help="Requests need an API key.")] = False,
    new_key: Annotated[bool, typer.Option("--new-key", help="Print a new administrator's key, and stop.")] = False,
    tenant: Annotated[str, typer.Option(help="Whose administrator the new key is.")] = "default",
    no_llm: Annotated[bool, typer.Option("--no-llm", help="Do not start the language model.")] = False,
    rate: Annotated[float, typer.Option(min=0, help="Requests a second of each caller; 0 does not limit.")] = 0.0,
    retention: Annotated[float, typer.Option(min=1, help="Days that events and answers are kept.")] = 730.0,
    origins: Annotated[list[str] | None, typer.Option("--origin", help="Pages of this origin may ask (CORS).")] = None,
) -> None:
    """Serve a run over HTTP: recommendations, events, new items, experiments, and a page to look at them."""
    with _of_the_service():
        from allrec.serving.app import ServeConfig, print_new_key
        from allrec.serving.app import serve as serve_run

    config = ServeConfig(
        run, database, host, port, needs_key=keys, with_llm=not no_llm, rate=rate, retention_days=retention,
        origins=tuple(origins or ()),
    )  # fmt: skip
    if new_key:
        print_new_key(config, tenant)
    else:
        serve_run(config)


@app.command()
def refresh(
    run: Run,
    out: Annotated[Path, typer.Option(help="The new run's folder, next to RUN.")],
    database: Database = None,
    tenant: Annotated[str, typer.Option(help="Whose run is made anew.")] = "default",
    margin: Annotated[
        float, typer.Option(help="NDCG@10 that the new run may lose, at the interval's lower end.")
    ] = 0.01,
    sets: Sets = None,
) -> None:
    """Train what serves again with the store's events, and publish it unless it is worse; the same --out resumes."""
    with _of_the_service():
        from allrec.serving.app import ServeConfig
        from allrec.serving.refresh import RefreshConfig
        from allrec.serving.refresh import refresh as refresh_run
        from allrec.serving.store import Store
    from allrec.cli.progress import noting, observing

    store = Store.open(ServeConfig(run, database).store_url)
    with noting(), observing() as observer:
        report = refresh_run(store, tenant, out.absolute(), RefreshConfig(margin, sets=tuple(sets or ())), observer)
    store.close()
    print_json(report)


@contextmanager
def _of_the_service() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed. Install it: pip install 'allrec[serve]'") from None


def _prepare_config(sets: list[str] | None, **given: Any) -> PrepareConfig:
    """The options of preparation: those of ``--set``, overridden by dedicated options."""
    from allrec.data.config import PrepareConfig

    values: dict[str, Any] = {key: _list_or_text(value) for key, value in _pairs(sets, "--set").items()}
    return PrepareConfig(**values | {key: value for key, value in given.items() if value is not None})


def _prepare_from(source: str, out: str, items: str | None, config: PrepareConfig, **given: Any) -> None:
    """Prepares a data set whose tables, and whose folder, may be behind URLs; shows its counts."""
    from allrec import storage
    from allrec.cli.progress import noting
    from allrec.cli.tables import show_counts, show_times
    from allrec.uploads import put_at_end

    # A copy of a folder is named by a hash.
    if storage.is_url(source) and config.name is None:
        config = config.changed(name=Path(source).name.split(".")[0])
    cache = _cache("data")
    with noting(), put_at_end(out, cache / "written", is_replaced=True) as folder:
        table = None if items is None else storage.local_copy(items, cache)
        show_counts(_prepare(storage.local_copy(source, cache), folder, table, config, **given))
        show_times(folder)


def _engine(name: str, workers: int) -> parallel.Engine | None:
    """The engine of a name; None is this process, which needs none."""
    from allrec.cli.engines import HERE, open_engine

    chosen = open_engine(name, workers)
    return None if name == HERE else chosen


def _here(dataset: str) -> Path:
    """A data set's folder, of this machine."""
    from allrec import storage

    return storage.local_copy(dataset, _cache("data"))


@contextmanager
def _changed(run: str) -> Iterator[Path]:
    """A run's folder to change; what is behind a URL is replaced at the end."""
    from allrec.uploads import changed_at_end

    with changed_at_end(run, _cache("runs") / "changed") as folder:
        yield folder


def _cache(kind: str) -> Path:
    """Where this machine has what is behind URLs."""
    from allrec.alignment.text_cache import default_cache

    return default_cache().with_name(kind)


def _parted(partitions: int, engine: str, workers: int) -> dict[str, Any]:
    """What preparation takes of the options of parts."""
    from allrec.cli.engines import HERE, open_engine

    if engine != HERE and partitions == 1:
        raise InputError(f"the engine {engine} works on parts, and there is one. Give --partitions 16, or more.")
    return {"partitions": partitions, "engine": open_engine(engine, workers)}


def _prepare(source: Path, folder: Path, items: Path | None, config: PrepareConfig, **given: Any) -> Dataset:
    from allrec.cli.progress import observing
    from allrec.data.preparation import prepare

    with observing() as observer:

        def on_step(name: str, share: float) -> None:
            observer("prepare", share, {"rows": 0.0}, name)

        dataset = prepare(source, folder, items=items, config=config, on_step=on_step, **given)
        num_rows = dataset.counts["interactions"] + dataset.counts["rejected_rows"]
        observer("prepare", 1.0, {"rows": float(num_rows)})
    return dataset


def _train(dataset: Path, run: Path, recipe: Recipe, **given: Any) -> AllRec:
    from allrec.cli.progress import noting, observing
    from allrec.cli.tables import show_results
    from allrec.recommender import AllRec
    from allrec.runs.self_test import check_answers

    with noting(), observing() as observer:
        system = AllRec.train(dataset, run=run, recipe=recipe, observer=observer, **given)
    check_answers(system.model)
    show_results(system.run)
    return system


def _recipe(run: Path, recipe: str | None, sets: list[str] | None, resume: bool) -> Recipe:
    """The requested recipe; where none is named, a resumed run's own, else the default."""
    from allrec.config import load_recipe
    from allrec.runs.run_folder import MANIFEST, RECIPE

    if recipe is None:
        recipe = str(run / RECIPE) if resume and (run / MANIFEST).is_file() else DEFAULT_RECIPE
    return load_recipe(recipe, tuple(sets or ()))


@contextmanager
def _watching(sentence: str) -> Iterator[Observer]:
    """Prints which run of a comparison begins, and shows the progress of its stages."""
    from allrec.cli.progress import err, observing

    err.print(sentence, markup=False, highlight=False, soft_wrap=True)
    with observing() as observer:
        yield observer


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _seeds(text: str) -> list[int]:
    for part in _parts(text):
        if not part.isdecimal():
            raise InputError(f"got the seed {part!r}, expected whole numbers with commas, such as --seeds 0,1,2")
    return [int(part) for part in _parts(text)]


def _pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    for text in texts or ():
        if "=" not in text:
            raise InputError(f"got {option} {text!r}, expected name=value.")
    return dict(text.split("=", 1) for text in texts or ())


def _list_or_text(value: str) -> Any:
    """Lists and tables are written as in TOML; all else is text, so that a name may be a number and a time a date."""
    from allrec.config import read_value

    return read_value(value) if value.startswith(("[", "{")) else value


if __name__ == "__main__":
    main()
