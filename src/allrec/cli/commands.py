"""The program: its commands and their options; what they do stands elsewhere."""

import json
import os
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated

import typer

from allrec.errors import FULL, InputError

app = typer.Typer(
    name="allrec",
    help="An all-round recommender: what people who act alike choose, and what a language model knows of things.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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
Separator = Annotated[str | None, typer.Option(help="What separates fields; found if left out.")]
TimeFormat = Annotated[
    str | None,
    typer.Option(help="How times are written: seconds, milliseconds, day-first, %d.%m.%Y, ...; found if left out."),
]
MaxRejected = Annotated[
    float | None, typer.Option(help="The share of the rows that may be unreadable; 0.05 if left out.", metavar="SHARE")
]
Run = Annotated[Path, typer.Argument(help="A run folder, written by train.", metavar="RUN")]


def main() -> None:
    """Runs the program; a mistake that the user can mend ends it with one sentence and exit code 2."""
    # Set before torch is imported: tokenizers would warn of every fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    open_streams()
    raise SystemExit(flushed(run_app()))


def run_app() -> int | str | None:
    """Runs the program and returns its exit code."""
    from allrec.cli.progress import noting

    try:
        with noting():
            app()
    except SystemExit as end:
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
        sys.stderr.write(
            "allrec: stopped. Nothing that was finished is lost: train and compare go on with --resume, "
            "data fetch by itself.\n"
        )
        return 130
    return 0


def open_streams() -> None:
    """Makes standard output and error take any text: closed ones swallow it, others replace what they cannot encode."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace" if stream is sys.stderr else "replace")


def flushed(code: int | str | None) -> int | str | None:
    """Writes what is left of standard output, and returns the exit code: 2 where there is no room, as it was else."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # The interpreter would flush once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return code
        sys.stderr.write(f"allrec: standard output: {error.strerror}. Make it usable, or give another place.\n")
        return 2
    return code


def print_json(value: object) -> None:
    """Prints a value as JSON, in letters that standard output can show; others are escaped, which loses nothing."""
    is_utf = (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(value, ensure_ascii=not is_utf) + "\n")


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder to write; it may be there from an earlier quickstart.")] = Path(
        "runs/demo"
    ),
    users: Annotated[int, typer.Option(min=50, help="Users of the simulated marketplace.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything.")] = 0,
) -> None:
    """Simulate a marketplace, prepare it, train on it, and show scores and recommendations. No network is needed."""
    from allrec.cli.terminal import run_quickstart

    run_quickstart(out, users, seed)


@data.command("list")
def list_published() -> None:
    """List the published data sets that can be fetched."""
    from allrec.cli.terminal import run_data_list

    run_data_list()


@data.command("fetch")
def fetch_published(
    name: Annotated[str, typer.Argument(help="A published data set, as data list names it.", metavar="NAME")],
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder to write; downloads/NAME if left out.", metavar="DIR")
    ] = None,
) -> None:
    """Fetch a published data set, checked by its checksum; run it again to go on with a broken fetch."""
    from allrec.cli.terminal import run_data_fetch

    run_data_fetch(name, to)


@app.command()
def prepare(
    source: Annotated[
        Path, typer.Argument(help="A table of interactions, or a folder with interactions.* and items.*.")
    ],
    out: Annotated[Path, typer.Option(help="The data set folder to write.")],
    items: Annotated[
        Path | None, typer.Option(help="The table of items, where it does not lie beside the interactions.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="The source's format; guessed if left out.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any option of preparation, such as min_rating=3; may be repeated."),
    ] = None,
    column: Annotated[
        list[str] | None, typer.Option(help="Where a column's name does not tell: user_id=customer; may be repeated.")
    ] = None,
    item_column: Annotated[list[str] | None, typer.Option(help="The same for the table of items: title=name.")] = None,
    names: Names = None,
    item_names: ItemNames = None,
    separator: Separator = None,
    time_format: TimeFormat = None,
    max_rejected: MaxRejected = None,
) -> None:
    """Clean, index and split interactions and items into a data set folder."""
    from allrec.cli.terminal import pairs_of, run_prepare
    from allrec.data.ids import split_ids

    given = {
        "format": format,
        "columns": pairs_of(column or [], "--column") or None,
        "item_columns": pairs_of(item_column or [], "--item-column") or None,
        "names": names and tuple(split_ids(names)),
        "item_names": item_names and tuple(split_ids(item_names)),
        "separator": separator,
        "time_format": time_format,
        "max_rejected": max_rejected,
    }
    options = {key: value for key, value in given.items() if value is not None}
    run_prepare(source, out, items, sets or [], options)


@app.command()
def train(
    dataset: Annotated[Path, typer.Argument(help="A data set folder, written by prepare.")],
    run: Annotated[Path, typer.Option(help="The run folder to write.")],
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, or a TOML file; a-llmrec if left out.")] = None,
    llm: Llm = None,
    sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
) -> None:
    """Train a recipe's stages and evaluate them on validation and test."""
    from allrec.cli.terminal import run_train

    run_train(dataset, run, recipe, llm, sets or [], resume)


@app.command()
def evaluate(
    run: Run,
    dataset: Annotated[Path, typer.Argument(help="The data set that the run was trained on; another: cross-domain.")],
    protocol: Annotated[
        list[str] | None, typer.Option(help="paper, sampled-99, full or full-repeat; may be repeated.")
    ] = None,
    scenario: Annotated[
        str | None, typer.Option(help="cross-domain, or the one that the run was trained for; that one if left out.")
    ] = None,
) -> None:
    """Evaluate a run again, under other protocols; or rank another data set with it."""
    from allrec.cli.terminal_experiments import run_evaluate

    run_evaluate(run, dataset, protocol or [], scenario)


@app.command()
def scenario(
    dataset: Annotated[Path, typer.Argument(help="A data set folder, written by prepare.")],
    scenario: Annotated[
        str,
        typer.Option(help="cold-users, cold-users-N, few-shot-N, unseen or global-time; N is a number of users."),
    ],
    out: Annotated[Path, typer.Option(help="The run folder to write.")],
    recipe: Annotated[str | None, typer.Option(help="A recipe's name, or a TOML file; a-llmrec if left out.")] = None,
    llm: Llm = None,
    sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped.")] = False,
) -> None:
    """Train a recipe without what a scenario holds out, and evaluate it on just that."""
    from allrec.cli.terminal_experiments import run_scenario

    run_scenario(dataset, scenario, out, recipe, llm, sets or [], resume)


@app.command()
def diagnose(
    run: Run,
    dataset: Annotated[Path, typer.Argument(help="The data set that the run was trained on.")],
    users: Annotated[int, typer.Option(min=1, help="Test users, a fixed sample.")] = 500,
    orders: Annotated[int, typer.Option(min=1, help="Random orders of each prompt's candidates.")] = 5,
) -> None:
    """Does the order of the history matter, does a candidate's place in the prompt, and are written answers valid?"""
    from allrec.cli.terminal_experiments import run_diagnose

    run_diagnose(run, dataset, users, orders)


@app.command()
def compare(
    dataset: Annotated[Path, typer.Argument(help="A data set folder, written by prepare.")],
    out: Annotated[Path, typer.Option(help="The folder to write: runs, tables and report.html.")],
    recipes: Annotated[str, typer.Option(help="Names or TOML files, with commas; the first is tested against.")] = (
        "a-llmrec"
    ),
    seeds: Annotated[str, typer.Option(help="Seeds of each recipe's runs, with commas.")] = "0",
    ablations: Annotated[
        str | None, typer.Option(help="stage1 or stage2: what each part of the first recipe is worth.")
    ] = None,
    backbones: Annotated[
        str | None,
        typer.Option(help="With commas, such as sasrec,gru4rec: each alone, and under the first recipe."),
    ] = None,
    llm: Llm = None,
    sets: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the comparison stopped.")] = False,
) -> None:
    """Train and evaluate recipes over seeds, each shared stage once, and write one table of them all."""
    from allrec.cli.terminal_compare import run_compare

    asked = (_parts(recipes), ablations, _parts(backbones or ""), tuple(sets or ()))
    run_compare(dataset, out, asked, _parts(seeds), llm, resume)


@app.command()
def baselines(
    dataset: Annotated[Path, typer.Argument(help="A data set folder, written by prepare.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    seeds: Annotated[str, typer.Option(help="Seeds of what is drawn, with commas.")] = "0",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the baselines stopped.")] = False,
) -> None:
    """Choose every baseline on validation, rank the test targets with it, and write one table of them all."""
    from allrec.cli.terminal_experiments import run_baselines_command

    run_baselines_command(dataset, out, _parts(seeds), resume)


@app.command()
def report(
    path: Annotated[Path, typer.Argument(help="A run folder, or the folder of a comparison.", metavar="RUN|DIR")],
    out: Annotated[Path | None, typer.Option(help="The file to write; report.html in there if left out.")] = None,
) -> None:
    """Write one self-contained HTML page about a run or a comparison."""
    from allrec.cli.terminal_compare import run_report

    run_report(path, out)


@app.command()
def recommend(
    run: Run,
    user: Annotated[str | None, typer.Option(help="A known user's id.")] = None,
    history: Annotated[str | None, typer.Option(help="Item ids, oldest first, with commas, quoted as in CSV.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many.")] = 10,
    candidates: Annotated[str | None, typer.Option(help="Rank these item ids alone, with commas.")] = None,
    with_history: Annotated[bool, typer.Option("--with-history", help="Items of the history may come again.")] = False,
    no_llm: Annotated[bool, typer.Option("--no-llm", help="Leave the language model out: faster.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend items to a user, or rank given ones."""
    from allrec.cli.terminal import show_recommendations
    from allrec.data.ids import split_ids
    from allrec.recommender import AllRec

    told, listed = (None if ids is None else split_ids(ids) for ids in (history, candidates))
    system = AllRec.from_pretrained(run)
    if listed is not None:
        found = system.rank(listed, user=user, history=told, use_llm=not no_llm)[:k]
    else:
        found = system.recommend(user=user, history=told, k=k, with_history=with_history, use_llm=not no_llm)
    if as_json:
        print_json([vars(item) for item in found])
    else:
        show_recommendations(system, user, told, found)
    if not (no_llm or system.model.has_llm):
        sys.stderr.write("Note: this run has no language model, so that all else orders the items.\n")


@app.command("add-items")
def add_items(
    run: Run,
    items: Annotated[
        Path, typer.Argument(help="JSON lines: item_id, title, description, genres.", metavar="ITEMS.jsonl")
    ],
) -> None:
    """Add new items to a trained run; they can be recommended at once, and nothing is retrained."""
    from allrec.cli.terminal import run_add_items

    run_add_items(run, items)


@app.command()
def generate(
    run: Run,
    task: Annotated[str, typer.Option(help="title or genres.")],
    user: Annotated[str | None, typer.Option(help="A known user's id.")] = None,
    history: Annotated[str | None, typer.Option(help="Item ids, oldest first, with commas, quoted as in CSV.")] = None,
    candidates: Annotated[
        str | None, typer.Option(help="The prompt lists these item ids, with commas, in place of retrieved ones.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many texts; more than one come of a beam.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Let the language model write a title or genres for a user, marked as in the catalogue or not."""
    from allrec.cli.terminal import show_written
    from allrec.data.ids import split_ids
    from allrec.recommender import AllRec

    told, listed = (None if ids is None else split_ids(ids) for ids in (history, candidates))
    # An unknown task is refused there.
    written = AllRec.from_pretrained(run).generate(user=user, history=told, task=task, candidates=listed, k=k)  # type: ignore[arg-type]
    if as_json:
        print_json([vars(text) for text in written])
    else:
        show_written(written)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


if __name__ == "__main__":
    main()
