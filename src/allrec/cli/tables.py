"""The tables that commands print, and users with their recommendations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from allrec.cli.progress import TwoLines, out, say

if TYPE_CHECKING:
    from allrec.data.dataset import Dataset
    from allrec.data.download import Fetched
    from allrec.data.published import PublishedSet
    from allrec.llm.generation import WrittenGenres, WrittenTitle
    from allrec.recommender import AllRec, Recommendation
    from allrec.runs.run_folder import RunFolder

METRICS = ("HR@1", "HR@10", "NDCG@10")
SEGMENTS = {"all": "", "new": ", targets new to the user"}
"""Segments of the tables, and how their titles end: repeated targets are given away by the history."""


def show_table(
    title: str | None,
    header: Sequence[str],
    rows: Sequence[Sequence[str | Text | TwoLines]],
    *,
    left: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """Prints a table; the first column and those of ``left`` are flush left, a row of chance level is dim.

    Args:
        title: above it.
        header: names of the columns.
        rows: cells; a string is shown as it is, nothing in it is markup.
        left: names of further columns of text.
        whole: names of columns that are not broken into lines.
    """
    table = Table(title=None if title is None else escape(title))
    for place, name in enumerate(header):
        is_left = place == 0 or name in left
        table.add_column(name, justify="left" if is_left else "right", overflow="fold", no_wrap=name in whole)
    for row in rows:
        cells = [escape(cell) if isinstance(cell, str) else cell for cell in row]
        table.add_row(*cells, style="dim" if row[0] == "chance" else "")
    out.print(table)


def show_counts(dataset: Dataset) -> None:
    """Prints the counts of a data set."""
    counts = [(name, count) for name, count in dataset.counts.items() if isinstance(count, int)]
    rows = [[name.replace("_", " "), f"{count:,}"] for name, count in counts]
    show_table(f"{dataset.name}: {dataset.path}", ["what", "count"], rows)


def show_times(folder: Path) -> None:
    """Prints how the times of a data set were read."""
    from allrec.data.dataset import read_manifest

    times = read_manifest(folder).get("times")
    if times is None:
        say("Times: none; interactions are in the order of the rows.")
    else:
        say(f"Times: column {times['column']}, {times['form']}; from {times['first']} to {times['last']}.")


def show_fetched(published: PublishedSet, folder: Path, fetched: Sequence[Fetched]) -> None:
    """Prints why each file is trusted, and the command that prepares them."""
    from allrec.data.download import record_of

    for one in fetched:
        reason = {
            "published": "its checksum is the published one",
            "recorded": f"its checksum is the one of the first fetch, in {record_of(one.path).name}",
            "first use": f"no checksum was published, so this fetch is trusted; {record_of(one.path).name} holds its "
            "sha256, and later fetches must agree",
        }[one.trust]
        say(f"{one.path}: {reason}.")
    options = "".join(f" --set {option}" for option in published.options)
    command = f"allrec prepare {folder} --format {published.format} --out data/{published.name}{options}"
    say(f"\nNext: {command}")


def show_results(run: RunFolder) -> None:
    """Prints the scores of all users and of those with a new target, by protocol, with chance and paired tests.

    Of test; of validation where nothing else was evaluated.
    """
    from allrec.evaluation.results import own_results

    metrics = run.metrics()
    llm, dataset = metrics["llm"].get("label", metrics["llm"]["name"]), metrics["dataset"]
    scenario = dataset.get("scenario", "standard")
    name = dataset["name"] + ("" if scenario == "standard" else f", scenario {scenario}")
    split = "test" if any(row["split"] == "test" for row in metrics["results"]) else "valid"
    header = ["scorer", "users", "HR@1", "95%", "HR@10", "NDCG@10"]
    for protocol, chance in metrics["chance"].items():
        hits, later, gain = (f"{chance[metric]:.4f}" for metric in METRICS)
        for segment, ending in SEGMENTS.items():
            wanted = (split, protocol, segment)
            chosen = [row for row in own_results(metrics) if (row["split"], row["protocol"], row["segment"]) == wanted]
            rows = [*map(_result, chosen), ["chance", "", hits, "", later, gain]]
            title = f"{name}, {split}, protocol {protocol}{ending}, language model {llm}"
            show_table(title, header, rows if chosen else [], whole=header)
    for row in metrics["comparisons"]:
        if row["split"] == split and row["metric"] == "HR@1":
            say(_compared(row))
    seconds = ", ".join(f"{name.replace('_', ' ')} {value:.0f} s" for name, value in metrics["seconds"].items())
    say(f"Time: {seconds}")


def _compared(row: dict[str, Any]) -> str:
    """A paired test as a sentence; a run of an earlier day does not say whether the first is not worse."""
    low, high = row["ci95"]
    margin = f", not worse by more than {row['margin']}" if row.get("is_not_worse") else ""
    return (
        f"HR@1 of {row['scorer']} less that of {row['against']}: {row['difference']:+.4f} ({low:+.3f} to {high:+.3f}), "
        f"p = {row.get('p_holm', row['p']):.4f}{margin} (paired, corrected by Holm, {row['users']} users, "
        f"protocol {row['protocol']})"
    )


def _result(row: dict[str, Any]) -> list[str]:
    low, high = row["ci95"]["HR@1"]
    hits, later, gain = (f"{row[metric]:.4f}" for metric in METRICS)
    return [row["scorer"], f"{row['users']:,}", hits, f"{low:.3f}-{high:.3f}", later, gain]


def show_users(system: AllRec, dataset: Dataset) -> None:
    """Prints a few users with their latest history and their recommendations."""
    for user in dataset.targets["test"].users[:3]:
        user_id = dataset.user_ids[user]
        show_recommendations(system, user_id, None, system.recommend(user=user_id, k=5))


def show_recommendations(
    system: AllRec, user: str | None, history: Sequence[str] | None, recommended: Sequence[Recommendation]
) -> None:
    """Prints a history and the recommendations for it, warm and cold items marked."""
    catalogue = system.model.catalogue
    known = system.history_of(user, history)
    out.print(f"\n[bold]{escape(user) if user else 'history'}[/bold], {len(known)} interactions, the latest:")
    for item in known[-5:]:
        out.print(Padding(TwoLines(catalogue.titles[item] or catalogue.item_ids[item]), (0, 0, 0, 4)))
    if not recommended:
        say("Nothing is left to recommend: every item is in the history. --with-history recommends them again.")
        return
    why = ["why"] if any(item.contributions for item in recommended) else []
    header = ["#", "item", "title", "", "score", "log P", "cf", *why]
    rows = [_recommendation(rank, item, recommended)[: len(header)] for rank, item in enumerate(recommended, 1)]
    show_table(None, header, rows, left=("item", "title", "", "why"))


def _recommendation(
    rank: int, item: Recommendation, recommended: Sequence[Recommendation]
) -> list[str | Text | TwoLines]:
    log_prob = "" if item.llm_log_prob is None else f"{item.llm_log_prob:.2f}"
    mark = Text("cold", style="cyan") if item.is_cold else "warm"
    title, why = TwoLines(item.title or "(no title)"), "" if item.contributions is None else reason(item, recommended)
    return [str(rank), item.item_id, title, mark, f"{item.score:.2f}", log_prob, f"{item.cf:.2f}", why]


LLM_COLUMN = {
    "sum": "log P of the title, in nats",
    "mean": "log P of the title, in nats a token",
    "pmi": "log P of the title less that without a history, in nats",
    "pmi-mean": "log P of the title less that without a history, in nats a token",
}


def show_evidence(system: AllRec, user: str) -> None:
    """Prints the contributions of evidence to a user's recommendations, and the language model's scores, if any."""
    import numpy as np

    from allrec.hybrid.features import families

    recommended, model = system.recommend(user=user, k=5), system.model
    items = np.array([[model.catalogue.item(item.item_id) for item in recommended]])
    shares = [families(item.contributions or {}) for item in recommended]
    say(f"\n{user}: the evidence for")
    for number, item in enumerate(recommended, 1):
        say(f"    {number}  {item.title or item.item_id}")
    numbers = [str(number) for number in range(1, len(recommended) + 1)]
    lines = [(name, [share[name] for share in shares]) for name in shares[0]]
    lines += [("score", [item.score for item in recommended])]
    if model.has_llm:
        lines += [("language model", model.llm_scores([system.history_of(user, None)], items)[0].tolist())]
    rows = [[name, *(f"{value:+.2f}" for value in values)] for name, values in lines]
    show_table(None, ["evidence", *numbers], rows)
    if not model.has_llm:
        return
    is_read, normalize = any(item.llm_log_prob is not None for item in recommended), model.recipe.evaluation.normalize
    say(
        f"The language model's column is {LLM_COLUMN[normalize]}; "
        + ("fusion reads it." if is_read else "fusion leaves it out, since it did not help on validation targets.")
    )


def reason(item: Recommendation, recommended: Sequence[Recommendation]) -> str:
    """The evidence that contributes more to an item than to the mean item shown, such as "text +1.2, cf +0.4"."""
    from allrec.hybrid.features import families

    own = families(item.contributions or {})
    others = [families(other.contributions or {}) for other in recommended]
    above = {name: value - sum(other.get(name, 0.0) for other in others) / len(others) for name, value in own.items()}
    best = sorted(above.items(), key=lambda entry: -entry[1])[:2]
    return ", ".join(f"{name} {value:+.1f}" for name, value in best)


def show_written(written: Sequence[WrittenTitle] | Sequence[WrittenGenres]) -> None:
    """Prints the generated texts, and which of them are in the catalogue."""
    from allrec.llm.generation import WrittenTitle

    for text in written:
        if isinstance(text, WrittenTitle):
            listed = "a candidate" if text.is_candidate else "no candidate"
            items = f"in the catalogue, {listed}: {', '.join(text.item_ids)}"
            say(f'"{text.title}"\n    {items if text.is_in_catalogue else "not in the catalogue"}')
        else:
            known, unknown = (", ".join(names) or "none" for names in (text.known, text.unknown))
            say(f"{text.text}\n    known genres: {known}; unknown: {unknown}")
        say(f"    log P {text.score:.2f}")


def show_foreign(rows: Sequence[dict[str, Any]], run: RunFolder) -> None:
    """Prints the scores of a run on another data set."""
    chances = run.metrics()["other_datasets"][rows[0]["dataset"]]["chance"]
    for protocol, chance in chances.items():
        for segment, ending in SEGMENTS.items():
            own = [row for row in rows if (row["protocol"], row["segment"]) == (protocol, segment)]
            cells = [[row["scorer"], f"{row['users']:,}", *(f"{row[metric]:.4f}" for metric in METRICS)] for row in own]
            cells.append(["chance", "", *(f"{chance[metric]:.4f}" for metric in METRICS)])
            name = f"{run.manifest['dataset']['name']} to {rows[0]['dataset']}, test, protocol {protocol}{ending}"
            show_table(name, ["scorer", "users", *METRICS], cells)


def show_diagnostics(result: dict[str, Any]) -> None:
    """Prints the effect of the order of the history and of the candidates, and the generated answers."""
    from allrec.experiments.summary import p_text

    name = f"{result['dataset']}, test, protocol {result['protocol']}"
    rows = [
        [row["scorer"], f"{row['kept']:.4f}", f"{row['shuffled']:.4f}", f"{row['difference']:+.4f}",
         p_text(row["p_holm"]), f"{row['changed']:.3f}", _maybe(row["correlation"])]
        for row in result["history"] if row["metric"] == "HR@1"
    ]  # fmt: skip
    header = ["scorer", "HR@1", "shuffled", "lost", "p (Holm)", "other first choice", "correlation of scores"]
    show_table(f"{name}: the history shuffled", header, rows)
    places, answers = result["places"], result["answers"]
    if places is not None:
        cells = [
            [str(row["place"]), f"{row['targets']:,}", _maybe(row["HR@1"]), f"{row['first_choices']:.3f}"]
            for row in places["places"]
        ]
        show_table(f"{name}: place in the prompt", ["place", "targets", "HR@1", "first choices"], cells)
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


def show_baselines(result: dict[str, Any]) -> None:
    """Prints metrics with intervals, measures beyond accuracy, and paired tests against the best."""
    from allrec.experiments.baselines import K

    name, rows = result["dataset"]["name"], result["table"]
    columns = {"paper": ("HR@1", "HR@10", "NDCG@10"), "full": ("HR@10", "NDCG@10")}
    for (protocol, metrics), (key, ending) in product(columns.items(), SEGMENTS.items()):
        place = f"test/{protocol}" + ("" if key == "all" else f"/{key}")
        cells = [[row["name"], *(_cell(row[place][metric]) for metric in metrics)] for row in rows if place in row]
        chance = result["chance"][protocol]
        cells.append(["chance", *(f"{chance[metric]:.4f}" for metric in metrics)])
        show_table(f"{name}, test, protocol {protocol}{ending}", ["baseline", *metrics], cells)
    beyond = ["coverage", "novelty, bits", "diversity", "popularity lift"]
    header = ["baseline", "setting", "HR@1 less the best's", *beyond]
    tests = {row["against"]: row for row in result["comparisons"] if _is_first(row)}
    show_table(f"Tests, and the {K} best of the catalogue", header, [_aside(row, tests) for row in rows])
    say(
        f"Settings, and the best of all ({result['best']}), were chosen on validation. Paired over seeds and test "
        f"users, two-sided test, p corrected by Holm for {len(rows) - 1} rows. Seeds: "
        f"{', '.join(map(str, result['seeds']))}; intervals over seeds and users, who are one where they are alike."
    )


def _aside(row: dict[str, Any], tests: dict[str, dict[str, Any]]) -> list[str]:
    from allrec.experiments.baselines import K
    from allrec.experiments.summary import p_text

    beyond = row["chosen"][0][f"beyond@{K}"]
    setting = ", ".join(f"{key} {value:g}" for key, value in row["chosen"][0]["setting"].items())
    test = tests.get(row["name"])
    difference = "" if test is None else f"{-test['difference']:+.4f}, {p_text(test['p_holm'])}"
    measures = [f"{beyond[name]:.3f}" for name in ("coverage", "novelty", "diversity", "popularity_lift")]
    return [row["name"], setting, difference, *measures]


def _maybe(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _is_first(row: dict[str, Any]) -> bool:
    return (row["protocol"], row["metric"]) == ("paper", "HR@1")


def _cell(values: Sequence[float]) -> str:
    return f"{values[0]:.4f}\n{values[1]:.3f}-{values[2]:.3f}"


NAMES = ("recipe", "scorer")
"""Columns of names, which are not broken."""


def show_comparison(result: dict[str, Any]) -> None:
    """Prints the table of a comparison, the scorers of each recipe, the notes, and the time."""
    from allrec.experiments.summary import EVIDENCE_HEADER, HEADER, cells, evidence_cells, notes

    table = result["table"]
    what = f"{table['dataset']}, protocol {table['protocol']}"
    header, rows = [name.rpartition(" ")[2] for name in HEADER], cells(table)
    for split, chosen in (
        ("validation", (0, 4, 5, 6)),
        ("test", (0, 7, 8, 9)),
        ("test, targets new to the user", (0, 10, 11)),
    ):
        names = [header[place] for place in chosen]
        show_table(f"{what}, {split}", names, _chosen(rows, chosen), whole=NAMES)
    aside = ["recipe", "training", "inference", "HR@1 less first row's", "less its llm-random-items"]
    tests = _chosen(rows[:-1], (0, 2, 3, 12, 13))
    show_table("Seconds, and paired tests on test users", aside, tests, whole=NAMES)
    names = [EVIDENCE_HEADER[place] for place in (0, 1, 2)] + header[7:10]
    scorers = _chosen(evidence_cells(table), (0, 1, 2, 6, 7, 8))
    show_table(f"{what}, test: every scorer", names, [_means(row) for row in scorers], whole=NAMES)
    for note in notes(table):
        say(note)
    seconds = result["seconds"]
    say(
        f"The comparison took {seconds['compare']:,.1f} s, its stages {seconds['stages']:,.1f} s: "
        f"{seconds['overhead']:.1%} above them."
    )


def _chosen(rows: Sequence[Sequence[str]], places: Sequence[int]) -> list[list[str]]:
    """Some columns; an interval goes below its mean and a p below its difference, so that they fit into a terminal."""
    return [
        [
            row[place].replace(" [", "\n[").replace(", p ", "\np ").replace(", NOT", "\nNOT").replace(", not", "\nnot")
            for place in places
        ]
        for row in rows
    ]


def _means(row: list[str]) -> list[str]:
    return [text.partition("\n[")[0] for text in row]
