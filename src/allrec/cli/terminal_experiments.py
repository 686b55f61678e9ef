"""What ``allrec evaluate``, ``scenario``, ``baselines`` and ``diagnose`` say."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from allrec.cli.progress import observing, out, say
from allrec.cli.terminal import COLUMNS, recipe_of, show_results
from allrec.cli.terminal_compare import seed_of
from allrec.data import load_dataset
from allrec.experiments.baselines import BASELINES, K, run_baselines
from allrec.experiments.cross_domain import evaluate_cross_domain
from allrec.experiments.diagnostics import DIAGNOSTICS, diagnose
from allrec.experiments.scenarios import CROSS_DOMAIN, evaluate_scenario, train_scenario
from allrec.experiments.summary import p_text
from allrec.recommender import AllRec, plan_of
from allrec.runs.run_folder import RunFolder


def run_evaluate(run: Path, dataset: Path, protocols: list[str], scenario: str | None) -> None:
    """Evaluates a run again, in its own scenario or on another data set, and prints the table of scores."""
    system = AllRec.from_pretrained(run)
    if scenario == CROSS_DOMAIN:
        show_foreign(evaluate_cross_domain(system, load_dataset(dataset), protocols=protocols), system.run)
        return
    recipe = system.run.recipe()
    if protocols:
        values = recipe.evaluation.model_dump() | {"protocols": protocols}
        recipe = recipe.model_copy(update={"evaluation": type(recipe.evaluation)(**values)})
    with observing() as observer:
        own = system.run.manifest["dataset"].get("scenario", "standard")
        plan = plan_of(recipe, run / "evaluate", observer)
        evaluate_scenario(system, dataset, scenario or own, plan)
    show_results(system.run)


def run_scenario(
    dataset: Path, scenario: str, run: Path, recipe: str | None, llm: str | None, sets: list[str], resume: bool
) -> None:
    """Trains without what a scenario holds out, evaluates and prints the table of scores."""
    chosen = recipe_of(run, recipe, sets, resume)
    with observing() as observer:
        system = train_scenario(dataset, scenario, run, recipe=chosen, llm=llm, resume=resume, observer=observer)
    show_results(system.run)


def show_foreign(rows: Sequence[dict[str, Any]], run: RunFolder) -> None:
    """Prints what a run does on another data set."""
    chances = run.metrics()["other_datasets"][rows[0]["dataset"]]["chance"]
    for protocol, chance in chances.items():
        own = [row for row in rows if (row["protocol"], row["segment"]) == (protocol, "all")]
        cells = [[row["scorer"], f"{row['users']:,}", *(f"{row[metric]:.4f}" for metric in COLUMNS)] for row in own]
        cells.append(["chance", "", *(f"{chance[metric]:.4f}" for metric in COLUMNS)])
        name = f"{run.manifest['dataset']['name']} to {rows[0]['dataset']}, test, protocol {protocol}"
        out.print(_table(name, ["scorer", "users", *COLUMNS], cells))


def run_diagnose(run: Path, dataset: Path, num_users: int, num_orders: int) -> None:
    """Diagnoses a run, prints the tables and says where they lie."""
    system = AllRec.from_pretrained(run)
    with observing() as observer:
        result = diagnose(system, dataset, num_users=num_users, num_orders=num_orders, observer=observer)
    show_diagnostics(result)
    say(f"Written: {run / DIAGNOSTICS}")


def show_diagnostics(result: dict[str, Any]) -> None:
    """Prints what the order of the history and of the candidates does, and what was written."""
    name = f"{result['dataset']}, test, protocol {result['protocol']}"
    rows = [
        [row["scorer"], f"{row['kept']:.4f}", f"{row['shuffled']:.4f}", f"{row['difference']:+.4f}",
         p_text(row["p_holm"]), f"{row['changed']:.3f}", _maybe(row["correlation"])]
        for row in result["history"] if row["metric"] == "HR@1"
    ]  # fmt: skip
    header = ["scorer", "HR@1", "shuffled", "lost", "p (Holm)", "other first choice", "correlation of scores"]
    out.print(_table(f"{name}: the history shuffled", header, rows))
    places, answers = result["places"], result["answers"]
    if places is not None:
        cells = [
            [str(row["place"]), f"{row['targets']:,}", _maybe(row["HR@1"]), f"{row['first_choices']:.3f}"]
            for row in places["places"]
        ]
        out.print(_table(f"{name}: place in the prompt", ["place", "targets", "HR@1", "first choices"], cells))
        say(
            f"llm over {places['orders']} orders of {places['users']:,} lists: HR@1 {places['HR@1']:.4f} on average, "
            f"{places['averaged']:.4f} with scores averaged over the orders. First choices are even over the places: "
            f"{p_text(places['p'])}."
        )
    if answers is not None:
        say(
            f"Written titles of {answers['users']:,} users: {answers['invalid']:.1%} name no candidate, "
            f"{answers['outside_catalogue']:.1%} no item of the catalogue; HR@1 {answers['HR@1']:.4f}."
        )


def run_baselines_command(dataset: Path, folder: Path, seeds: tuple[str, ...], resume: bool) -> None:
    """Runs every baseline, prints the tables and says where they lie."""
    numbers = [seed_of(text) for text in seeds]
    with observing() as observer:
        result = run_baselines(dataset, folder, seeds=numbers, resume=resume, observer=observer)
    show_baselines(result)
    say(f"Written: {folder / BASELINES}")


def show_baselines(result: dict[str, Any]) -> None:
    """Prints metrics with intervals, what lists are like, and paired tests against the best."""
    name, rows = result["dataset"]["name"], result["table"]
    columns = {"paper": ("HR@1", "HR@10", "NDCG@10"), "full": ("HR@10", "NDCG@10")}
    for protocol, metrics in columns.items():
        cells = [[row["name"], *(_cell(row[f"test/{protocol}"][metric]) for metric in metrics)] for row in rows]
        chance = result["chance"][protocol]
        cells.append(["chance", *(f"{chance[metric]:.4f}" for metric in metrics)])
        out.print(_table(f"{name}, test, protocol {protocol}", ["baseline", *metrics], cells))
    header = [
        "baseline",
        "setting",
        "HR@1 less the best's",
        "coverage",
        "novelty, bits",
        "diversity",
        "popularity lift",
    ]
    tests = {row["against"]: row for row in result["comparisons"] if _is_first(row)}
    out.print(_table(f"Tests, and the {K} best of the catalogue", header, [_aside(row, tests) for row in rows]))
    say(
        f"Settings, and the best of all ({result['best']}), were chosen on validation. Paired over the test users, "
        f"two-sided sign-flip test, p corrected by Holm for {len(rows) - 1} rows. Seeds: "
        f"{', '.join(map(str, result['seeds']))}; intervals over seeds, over users where there is one."
    )


def _aside(row: dict[str, Any], tests: dict[str, dict[str, Any]]) -> list[str]:
    beyond = row["chosen"][0][f"beyond@{K}"]
    setting = ", ".join(f"{key} {value:g}" for key, value in row["chosen"][0]["setting"].items())
    test = tests.get(row["name"])
    said = "" if test is None else f"{-test['difference']:+.4f}, {p_text(test['p_holm'])}"
    measures = [f"{beyond[name]:.3f}" for name in ("coverage", "novelty", "diversity", "popularity_lift")]
    return [row["name"], setting, said, *measures]


def _maybe(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _is_first(row: dict[str, Any]) -> bool:
    return (row["protocol"], row["metric"]) == ("paper", "HR@1")


def _cell(values: Sequence[float]) -> str:
    return f"{values[0]:.4f}\n{values[1]:.3f}-{values[2]:.3f}"


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=escape(title))
    for place, name in enumerate(header):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row), style="dim" if row[0] == "chance" else "")
    return table
