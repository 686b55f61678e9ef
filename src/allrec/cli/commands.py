"""The program: its commands and their options; what they do stands elsewhere."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from allrec.errors import InputError

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
Run = Annotated[Path, typer.Argument(help="A run folder, written by train.", metavar="RUN")]


def main() -> None:
    """Runs the program; a mistake that the user can mend ends it with one sentence and exit code 2."""
    # Set before torch is imported: tokenizers would warn of every fork.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except InputError as error:
        sys.stderr.write(f"allrec: {error}\n")
        raise SystemExit(2) from None
    except OSError as error:
        if error.filename is None:
            raise
        sys.stderr.write(f"allrec: {error.filename}: {error.strerror}. Make it usable, or give another place.\n")
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        sys.stderr.write(
            "allrec: stopped. Nothing that was finished is lost: train and compare go on with --resume, "
            "data fetch by itself.\n"
        )
        raise SystemExit(130) from None


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
) -> None:
    """Clean, index and split interactions and items into a data set folder."""
    from allrec.cli.terminal import run_prepare

    run_prepare(source, out, items, format, sets or [], column or [], item_column or [])


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
    history: Annotated[
        str | None, typer.Option(help="Item ids, oldest first, with commas, in place of a user.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many.")] = 10,
    candidates: Annotated[str | None, typer.Option(help="Rank these item ids alone, with commas.")] = None,
    with_history: Annotated[bool, typer.Option("--with-history", help="Items of the history may come again.")] = False,
    no_llm: Annotated[bool, typer.Option("--no-llm", help="Leave the language model out: faster.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend items to a user, or rank given ones."""
    from allrec.cli.terminal import show_recommendations
    from allrec.recommender import AllRec

    system = AllRec.from_pretrained(run)
    told = None if history is None else _parts(history)
    if candidates is not None:
        found = system.rank(_parts(candidates), user=user, history=told, use_llm=not no_llm)[:k]
    else:
        found = system.recommend(user=user, history=told, k=k, with_history=with_history, use_llm=not no_llm)
    if as_json:
        sys.stdout.write(json.dumps([vars(item) for item in found], ensure_ascii=False) + "\n")
    else:
        show_recommendations(system, user, told, found)


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
    history: Annotated[
        str | None, typer.Option(help="Item ids, oldest first, with commas, in place of a user.")
    ] = None,
    candidates: Annotated[
        str | None, typer.Option(help="The prompt lists these item ids, with commas, in place of retrieved ones.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many texts; more than one come of a beam.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Let the language model write a title or genres for a user, marked as in the catalogue or not."""
    from allrec.cli.terminal import show_written
    from allrec.recommender import AllRec

    told, listed = (None if ids is None else _parts(ids) for ids in (history, candidates))
    # An unknown task is refused there.
    written = AllRec.from_pretrained(run).generate(user=user, history=told, task=task, candidates=listed, k=k)  # type: ignore[arg-type]
    if as_json:
        sys.stdout.write(json.dumps([vars(text) for text in written], ensure_ascii=False) + "\n")
    else:
        show_written(written)


@app.command()
def serve(
    run: Run,
    host: Annotated[str, typer.Option(help="Address to listen at; another than loopback needs --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8000,
    database: Annotated[
        str | None,
        typer.Option(
            envvar="ALLREC_DATABASE",
            help="sqlite:///PATH or postgresql://...; a file beside the run if left out.",
        ),
    ] = None,
    keys: Annotated[bool, typer.Option("--keys", help="Requests need an API key.")] = False,
    new_key: Annotated[bool, typer.Option("--new-key", help="Print a new administrator's key, and stop.")] = False,
    no_llm: Annotated[bool, typer.Option("--no-llm", help="Do not start the language model.")] = False,
    rate: Annotated[float, typer.Option(min=0, help="Requests a second of each caller; 0 does not limit.")] = 0.0,
    retention: Annotated[float, typer.Option(min=1, help="Days that events and answers are kept.")] = 730.0,
    origins: Annotated[list[str] | None, typer.Option("--origin", help="Pages of this origin may ask (CORS).")] = None,
) -> None:
    """Serve a run over HTTP: recommendations, events, new items, experiments, and a page to look at them."""
    try:
        from allrec.serving.app import ServeConfig, print_new_key
        from allrec.serving.app import serve as serve_run
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed. Install it: pip install 'allrec[serve]'") from None

    config = ServeConfig(
        run, database, host, port, needs_key=keys, with_llm=not no_llm, rate=rate, retention_days=retention,
        origins=tuple(origins or ()),
    )  # fmt: skip
    if new_key:
        print_new_key(config)
    else:
        serve_run(config)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


if __name__ == "__main__":
    main()
