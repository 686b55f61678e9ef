"""What the program says: tables, and a few users with what is recommended to them."""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from allrec.cli.progress import TwoLines, noting, number, observing, out, say
from allrec.config import Recipe, load_recipe, read_value
from allrec.data import Dataset, PrepareConfig, SimulationConfig, load_dataset, simulate
from allrec.data import prepare as prepare_dataset
from allrec.data.dataset import is_dataset, read_manifest
from allrec.data.download import Fetched, fetch, record_of
from allrec.data.items import read_new_items
from allrec.data.published import PUBLISHED, PublishedSet, find_published
from allrec.errors import InputError
from allrec.evaluation.results import own_results
from allrec.hybrid.features import families
from allrec.llm.generating import WrittenGenres, WrittenTitle
from allrec.recommender import AllRec, Recommendation
from allrec.report.figures import has_matplotlib
from allrec.report.page import PAGE, write_report
from allrec.runs.run_folder import MANIFEST, RECIPE, RunFolder

DEFAULT_RECIPE = "a-llmrec"
COLUMNS = ("HR@1", "HR@10", "NDCG@10")


def run_quickstart(folder: Path, num_users: int, seed: int) -> None:
    """The whole pipeline on a simulated marketplace."""
    source, prepared, run = folder / "source", folder / "dataset", folder / "run"
    simulation = SimulationConfig(num_users=num_users, seed=seed)
    out.print(f"A simulated marketplace of {num_users} users goes through the whole pipeline, into {folder}.")
    if not is_dataset(prepared):
        simulate(source, simulation)
        with noting():
            _prepared(source, prepared, None, PrepareConfig(name="simulated marketplace", seed=seed))
    recipe = load_recipe("quickstart", (f"seed={seed}",))
    system = _trained(prepared, run, recipe, None, resume=(run / MANIFEST).is_file())
    show_results(system.run)
    dataset = load_dataset(prepared)
    show_users(system, dataset)
    show_evidence(system, dataset.user_ids[dataset.targets["test"].users[0]])
    say(f"\nMore: allrec recommend {run} --history ID,ID   (ids stand in {source / 'items.jsonl'})")
    if has_matplotlib():
        say(f"Figures and tables: {write_report(run, out=folder / PAGE)}")


def run_prepare(source: Path, folder: Path, items: Path | None, sets: list[str], options: dict[str, Any]) -> None:
    """Prepares a data set, prints its counts, and ends with what is worth knowing of the source."""
    values: dict[str, Any] = {key: _list_or_text(value) for key, value in pairs_of(sets, "--set").items()}
    with noting():
        show_counts(_prepared(source, folder, items, PrepareConfig(**values | options)))
        show_times(folder)


def show_times(folder: Path) -> None:
    """Prints how the times of a data set were read."""
    times = read_manifest(folder).get("times")
    if times is None:
        say("Times: none, so that the order of the rows counts.")
    else:
        say(f"Times: column {times['column']}, {times['form']}; from {times['first']} to {times['last']}.")


def _prepared(source: Path, folder: Path, items: Path | None, config: PrepareConfig) -> Dataset:
    with observing() as observer:
        dataset = prepare_dataset(
            source,
            folder,
            items=items,
            config=config,
            on_step=lambda name, share: observer("prepare", share, {"rows": 0.0}, name),
        )
        num_rows = dataset.counts["interactions"] + dataset.counts["rejected_rows"]
        observer("prepare", 1.0, {"rows": float(num_rows)})
    return dataset


def run_train(dataset: Path, run: Path, recipe: str | None, llm: str | None, sets: list[str], resume: bool) -> None:
    """Trains, evaluates and prints the table of scores; a run that goes on has its own recipe where none is named."""
    system = _trained(dataset, run, recipe_of(run, recipe, sets, resume), llm, resume)
    show_results(system.run)


def recipe_of(run: Path, recipe: str | None, sets: list[str], resume: bool) -> Recipe:
    """The recipe that was asked for; of a run that goes on its own where none is named, else the default."""
    if recipe is None:
        recipe = str(run / RECIPE) if resume and (run / MANIFEST).is_file() else DEFAULT_RECIPE
    return load_recipe(recipe, tuple(sets))


def run_add_items(run: Path, items: Path) -> None:
    """Adds new items to a run and says how many it has now."""
    rows = read_new_items(items)
    with noting():
        system = AllRec.from_pretrained(run)
        added = system.add_items(rows)
    say(f"{len(added):,} items joined {run}, which has {system.model.catalogue.num_items:,} now.")


def _trained(dataset: Path, run: Path, recipe: Recipe, llm: str | None, resume: bool) -> AllRec:
    with noting(), observing() as observer:
        return AllRec.train(dataset, run=run, recipe=recipe, llm=llm, resume=resume, observer=observer)


def run_data_list() -> None:
    """Prints the published data sets that can be fetched."""
    width = max(len(published.name) for published in PUBLISHED)
    for terms, group in groupby(PUBLISHED, key=attrgetter("terms")):
        say(f"\n{terms}")
        for published in group:
            size = "" if published.size is None else f" ({number(published.size / 1e6)} MB)"
            say(f"  {published.name:{width}}  {published.about}{size}")


def run_data_fetch(name: str, folder: Path | None) -> None:
    """Fetches a published data set and says how to prepare it."""
    published = find_published(name)
    folder = folder or Path("downloads") / name
    say(f"{published.about}. {published.terms}.")
    with observing() as observer:

        def on_bytes(file: str, done: int, total: int | None) -> None:
            observer(file, done / total if total else 0.0, {"bytes": float(done)})

        fetched = fetch(published, folder, on_bytes)
    show_fetched(published, folder, fetched)


def show_fetched(published: PublishedSet, folder: Path, fetched: Sequence[Fetched]) -> None:
    """Prints why each file is trusted, and the command that prepares them."""
    for one in fetched:
        reason = {
            "published": "its checksum is the published one",
            "recorded": f"its checksum is the one of the first fetch, in {record_of(one.path).name}",
            "first use": f"no checksum was published, so what came is trusted; {record_of(one.path).name} holds its "
            "sha256, and later fetches must agree",
        }[one.trust]
        say(f"{one.path}: {reason}.")
    options = "".join(f" --set {option}" for option in published.options)
    command = f"allrec prepare {folder} --format {published.format} --out data/{published.name}{options}"
    say(f"\nNext: {command}")


def show_counts(dataset: Dataset) -> None:
    """Prints what a data set holds."""
    table = Table(title=f"{dataset.name}: {dataset.path}")
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, count in dataset.counts.items():
        if isinstance(count, int):
            table.add_row(name.replace("_", " "), f"{count:,}")
    out.print(table)


def show_results(run: RunFolder) -> None:
    """Prints the scores of all test users, by protocol, with chance level and paired tests."""
    metrics = run.metrics()
    llm = metrics["llm"]["name"]
    for protocol, chance in metrics["chance"].items():
        scenario = metrics["dataset"].get("scenario", "standard")
        name = metrics["dataset"]["name"] + ("" if scenario == "standard" else f", scenario {scenario}")
        table = Table(title=f"{name}, test, protocol {protocol}, language model {llm}")
        table.add_column("scorer", no_wrap=True)
        for column in ("users", "HR@1", "95%", "HR@10", "NDCG@10"):
            table.add_column(column, justify="right", no_wrap=True)
        asked = ("test", protocol, "all")
        for row in own_results(metrics):
            if (row["split"], row["protocol"], row["segment"]) != asked:
                continue
            low, high = row["ci95"]["HR@1"]
            hits, later, gain = (f"{row[column]:.4f}" for column in COLUMNS)
            table.add_row(row["scorer"], f"{row['users']:,}", hits, f"{low:.3f}-{high:.3f}", later, gain)
        hits, later, gain = (f"{chance[column]:.4f}" for column in COLUMNS)
        table.add_row("chance", "", hits, "", later, gain, style="dim")
        out.print(table)
    for row in metrics["comparisons"]:
        if row["split"] == "test" and row["metric"] == "HR@1":
            say(
                f"HR@1 of {row['scorer']} less that of {row['against']}: {row['difference']:+.4f}, "
                f"p = {row.get('p_holm', row['p']):.4f} (paired, corrected by Holm, {row['users']} users, "
                f"protocol {row['protocol']})"
            )
    seconds = ", ".join(f"{name.replace('_', ' ')} {value:.0f} s" for name, value in metrics["seconds"].items())
    say(f"Time: {seconds}")


def show_users(system: AllRec, dataset: Dataset, num_users: int = 3) -> None:
    """Prints a few users with their latest history and what is recommended to them."""
    for user in dataset.targets["test"].users[:num_users]:
        user_id = dataset.user_ids[user]
        show_recommendations(system, user_id, None, system.recommend(user=user_id, k=5))


def show_recommendations(
    system: AllRec, user: str | None, history: Sequence[str] | None, found: Sequence[Recommendation]
) -> None:
    """Prints a history and the recommendations for it, warm and cold items marked."""
    catalogue = system.model.catalogue
    told = system.history_of(user, history)
    out.print(f"\n[bold]{escape(user) if user else 'history'}[/bold], {len(told)} interactions, the latest:")
    for item in told[-5:]:
        out.print(Padding(TwoLines(catalogue.titles[item] or catalogue.item_ids[item]), (0, 0, 0, 4)))
    if not found:
        say("Nothing is left to recommend: the history holds every item. With --with-history they may come again.")
        return
    table = Table()
    for column, justify in (
        ("", "right"),
        ("item", "left"),
        ("title", "left"),
        ("", "left"),
        ("score", "right"),
        ("log P", "right"),
        ("cf", "right"),
        *((("why", "left"),) if any(item.contributions for item in found) else ()),
    ):
        table.add_column(column, justify=justify)
    for rank, item in enumerate(found, 1):
        log_prob = "" if item.llm_log_prob is None else f"{item.llm_log_prob:.2f}"
        mark = "[cyan]cold[/cyan]" if item.is_cold else "warm"
        why = () if item.contributions is None else (reason(item, found),)
        table.add_row(
            str(rank),
            escape(item.item_id),
            TwoLines(item.title or "(no title)"),
            mark,
            f"{item.score:.2f}",
            log_prob,
            f"{item.cf:.2f}",
            *why,
        )
    out.print(table)


def show_evidence(system: AllRec, user: str, k: int = 5) -> None:
    """Prints what each family of evidence adds to a user's recommendations, and how the language model sees them."""
    found, model = system.recommend(user=user, k=k), system.model
    items = np.array([[model.catalogue.item(item.item_id) for item in found]])
    read = model.llm_scores([system.history_of(user, None)], items)[0]
    shares = [families(item.contributions or {}) for item in found]
    table = Table(title=f"{escape(user)}: what speaks for each item")
    for name in ("title", *shares[0], "score", "language model"):
        table.add_column(name, justify="left" if name == "title" else "right")
    for item, share, own in zip(found, shares, read, strict=True):
        values = (*share.values(), item.score, float(own))
        table.add_row(escape(item.title or "(no title)"), *(f"{value:+.2f}" for value in values))
    out.print(table)
    has_say = any(item.llm_log_prob is not None for item in found)
    say(
        "The language model's column is log P of the title less that without a history, in nats; "
        + ("fusion reads it." if has_say else "fusion leaves it out, for on validation targets it did not help.")
    )


def reason(item: Recommendation, found: Sequence[Recommendation], most: int = 2) -> str:
    """Which evidence speaks for an item more than for the others that are shown, such as "text +1.2, cf +0.4"."""
    own = families(item.contributions or {})
    others = [families(other.contributions or {}) for other in found]
    above = {name: value - sum(other.get(name, 0.0) for other in others) / len(others) for name, value in own.items()}
    best = sorted(above.items(), key=lambda entry: -entry[1])[:most]
    return ", ".join(f"{name} {value:+.1f}" for name, value in best)


def show_written(written: Sequence[WrittenTitle] | Sequence[WrittenGenres]) -> None:
    """Prints what the language model wrote, a line a text, and what of it the catalogue knows."""
    for text in written:
        if isinstance(text, WrittenTitle):
            listed = "a candidate" if text.is_candidate else "no candidate"
            items = f"in the catalogue, {listed}: {', '.join(text.item_ids)}"
            say(f'"{text.title}"\n    {items if text.is_in_catalogue else "not in the catalogue"}')
        else:
            known, unknown = (", ".join(names) or "none" for names in (text.known, text.unknown))
            say(f"{text.text}\n    known genres: {known}; unknown: {unknown}")
        say(f"    log P {text.score:.2f}")


def pairs_of(texts: Sequence[str], option: str) -> dict[str, str]:
    """What an option that may be repeated says, each ``name=value``.

    Raises:
        InputError: one is no pair.
    """
    pairs = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise InputError(f"got {option} {text!r}, expected name=value.")
        pairs[key] = value
    return pairs


def _list_or_text(value: str) -> Any:
    """Lists and tables are written as in TOML; all else is text, so that a name may be a number and a time a date."""
    return read_value(value) if value.startswith(("[", "{")) else value
