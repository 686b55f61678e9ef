"""The whole system as one object: train it, load it, rank and recommend with it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from allrec.alignment.text_cache import default_cache
from allrec.config import Recipe, choose_language_model, load_recipe, settled
from allrec.data.dataset import Dataset, load_dataset
from allrec.data.ids import Id, ids_of
from allrec.errors import InputError, nearest
from allrec.files import staging, write_json
from allrec.hybrid.features import histories_of
from allrec.hybrid.fusion import Scope
from allrec.hybrid.ranking import FusedRanker, Scored, first_that_fit
from allrec.parallel import Engine, Observer, ignore
from allrec.runs.recommend_all import USERS_A_PART, recommend_all
from allrec.runs.run_folder import METRICS_FILE, NO_LLM, REFIT, RunFolder, describe, llm_label, open_run, refitted_run
from allrec.runs.trained_model import TrainedModel, load_language_model

if TYPE_CHECKING:
    from allrec.evaluation.evaluate import Plan
    from allrec.evaluation.results import Ranking
    from allrec.llm.generation import Task, WrittenGenres, WrittenTitle
    from allrec.llm.language_model import LanguageModel
    from allrec.runs.stages import Training
    from allrec.training.distributed import Group

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item_id: the data set's own id.
        title: None where the item has none.
        score: orders the items, larger is better: the fused score in logits, or without a fusion the language
            model's log-likelihood, or x_u · E_i. Items that the language model read come before the others,
            whatever their scores.
        cf: x_u · E_i, the backbone's logit.
        is_cold: whether the item is embedded by its text.
        llm_log_prob: the language model's score of the title as ``evaluation.normalize`` says; None where the
            language model did not read the item.
        contributions: what each evidence adds to ``score``; None without a fusion, empty for items that were retrieved
            and not fused.
    """

    item_id: str
    title: str | None
    score: float
    cf: float
    is_cold: bool
    llm_log_prob: float | None = None
    contributions: dict[str, float] | None = None


class AllRec:
    """A trained recommender. Make one with ``train`` or ``from_pretrained``.

    Args:
        model: the trained stages of a run.
    """

    def __init__(self, model: TrainedModel) -> None:
        self.measured, self.run, self.location = model, model.run, str(model.run.path)
        refitted = refitted_run(model.run)
        # The served model was trained on more data than the one that is evaluated on validation.
        self.model = model if refitted is None else TrainedModel.load(refitted, model.loaded_llm, model.device)

    @classmethod
    def train(
        cls,
        dataset: Dataset | Path | str,
        *,
        run: Path | str,
        recipe: Recipe | str = "a-llmrec",
        llm: str | None = None,
        resume: bool = False,
        cache: Path | None = None,
        device: str | None = None,
        observer: Observer = ignore,
        is_evaluated: bool = True,
        group: Group | None = None,
    ) -> AllRec:
        """Trains every stage of a recipe and evaluates it on validation and test.

        Args:
            dataset: a data set or its folder.
            run: folder to write; new, or with ``resume`` that of a stopped run.
            recipe: a recipe, its name, or a TOML file.
            llm: any causal language model by name or path, or a packaged one; the recipe's choice where None.
            resume: continue where the run stopped; it ends in the same bytes.
            cache: folder of cached text embeddings.
            device: "cpu", "cuda", ...: where the language model answers and every stage before it is trained; None is
                the accelerator where there is one.
            observer: receives the progress.
            is_evaluated: whether the run is evaluated at the end.
            group: workers that train backbone and stages 1 and 2 together, such as ``Workers(4)``; None: this process.
                They read the data set and the run by their paths.

        Raises:
            InputError: what is wrong with the data, the recipe or the folder, and what to do.
        """
        from allrec.runs.stages import check_before_training, train_stages
        from allrec.runs.tensorboard import recording

        dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
        recipe = choose_language_model(load_recipe(recipe) if isinstance(recipe, str) else recipe, llm)
        # Before the language model, which takes a while to load.
        begun = RunFolder.find(run, resume)
        known = [] if begun is None else [begun]
        model = load_language_model(recipe, device, known) if recipe.llm.enabled else None
        if model is not None:
            recipe = settled_by(recipe, model)
        if not known:
            check_before_training(dataset, recipe, model, is_evaluated)
        training = begin_training(dataset, run, recipe, model, resume=resume, cache=cache, device=device)
        if group is not None and dataset.scenario != "standard":
            raise InputError(
                f"{dataset.name} was changed for scenario {dataset.scenario}, and workers read it from its folder."
            )
        with recording(training.run.path / "events", observer) as recorder:
            system = cls(train_stages(replace(training, observer=recorder, group=group)))
        if is_evaluated:
            system.evaluate(dataset, observer=observer)
        return system

    @classmethod
    def from_pretrained(cls, path: Path | str, *, device: str | None = None) -> AllRec:
        """Loads a run. The language model's own weights are loaded at their first use, from where the recipe says.

        Args:
            path: its folder, or a URL such as ``s3://BUCKET/RUN``, which is copied to the cache.
            device: see ``train``.

        Raises:
            InputError: no run there, a stage that is not done, or a damaged file.
        """
        system = cls(TrainedModel.load(open_run(path), device=device))
        system.location = str(path)
        return system

    def save_pretrained(self, path: Path | str) -> None:
        """Copies the run folder: all that serving needs but the language model's own weights."""
        if Path(path).exists() and any(Path(path).iterdir()):
            raise InputError(f"{path} is not empty. Give a new folder.")
        with staging(Path(path), lambda folder: False, "empty folder") as copy:
            shutil.copytree(self.run.path, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.part"))

    def push_to_hub(self, name: str, *, private: bool = True) -> str:
        """Uploads the run folder to the Hugging Face hub and returns its address; needs a login there."""
        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(name, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=str(self.run.path)))

    def evaluate(
        self, dataset: Dataset | Path | str, *, plan: Plan | None = None, observer: Observer = ignore
    ) -> dict[str, Any]:
        """Evaluates the system and writes ``metrics.json``; earlier results of other protocols are kept.

        Args:
            dataset: the data set of the run.
            plan: what to score; the recipe's choice where None.
            observer: receives the progress.

        Returns:
            The content of ``metrics.json``.

        Raises:
            InputError: another data set than the run's, or one with nobody to evaluate.
        """
        from allrec.alignment.measures import measure_alignment
        from allrec.evaluation.evaluate import evaluate
        from allrec.evaluation.results import metrics_of, save_ranks, with_earlier
        from allrec.runs.scorers import SCORERS
        from allrec.runs.stages import EVALUATE

        dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
        self.run.check_dataset(dataset.sha256, dataset.name)

        model, recipe = self.measured, self.measured.recipe
        with self.run.stage(EVALUATE) as folder:
            plan = plan or plan_of(recipe, folder, observer)
            evaluation = evaluate(model, dataset, plan, SCORERS)
            refitted = self._evaluate_refitted(dataset, plan) if recipe.refit == "valid" else []
            rankings = with_earlier(folder, [*evaluation.rankings, *refitted])
            save_ranks(folder, rankings, dataset)
        leads = [name for name, scorer in reversed(SCORERS.items()) if scorer.is_lead]
        seed = recipe.evaluation.bootstrap_seed
        earlier = self.run.metrics() if (self.run.path / METRICS_FILE).is_file() else {}
        head = head_of(self.run, dataset)
        metrics = metrics_of(head, dataset, rankings, leads=leads, seed=seed, earlier=earlier)
        metrics["left_out"] = [{**task._asdict(), "reason": reason} for task, reason in evaluation.left_out.items()]
        metrics["alignment"] = measure_alignment(
            model.alignment, model.item_embeddings, model.text_embeddings, model.catalogue.train_counts
        )
        write_json(self.run.path / METRICS_FILE, metrics)
        return metrics

    def _evaluate_refitted(self, dataset: Dataset, plan: Plan) -> list[Ranking]:
        """Test rows of the refitted parts, labelled by their scorers' names; validation is what they were fitted on."""
        from allrec.evaluation.evaluate import evaluate
        from allrec.runs.scorers import SCORERS

        if "test" not in plan.splits:
            return []
        folder = None if plan.folder is None else plan.folder / REFIT
        own = replace(plan, splits=("test",), folder=folder, read_folders=())
        rankings = evaluate(self.model, dataset, own, SCORERS).rankings
        return [replace(one, scorer=f"{one.scorer}-{REFIT}") for one in rankings]

    def rank(
        self,
        candidates: Sequence[Id],
        *,
        user: Id | None = None,
        history: Sequence[Id] | None = None,
        use_llm: bool = True,
    ) -> list[Recommendation]:
        """Ranks given items for a known user or a bare history, best first, as protocol ``paper`` is evaluated.

        With a fusion all evidence orders them, and the language model reads the best few where there are many;
        without one it reads them all.

        Args:
            candidates: item ids, each once.
            user: a known user's id.
            history: item ids, oldest first, in place of a user.
            use_llm: False ranks without the language model, in a fraction of the time.

        Raises:
            InputError: an unknown id, an item given twice, or candidates that outgrow the model's prompt.
        """
        items, known = self._given(candidates)[None], self.history_of(user, history)
        model, reads = self.model, use_llm and self.model.reads_llm("lists")
        if reads and model.fused_ranker is None and not model.titles.fits(items):
            raise InputError(
                f"{items.shape[1]} candidates outgrow the prompt: the language model reads {model.llm.max_length} "
                "tokens. Give fewer, or rank without it: use_llm=False, --no-llm."
            )
        reader = model.llm_reader([known]) if reads else None
        return self._recommendations(
            known, next(model.ranker.rank_lists(histories_of([known]), items, reader)), "lists"
        )

    def recommend(
        self,
        *,
        user: Id | None = None,
        history: Sequence[Id] | None = None,
        k: int = 10,
        with_history: bool = False,
        num_ranked: int | None = None,
        use_llm: bool = True,
    ) -> list[Recommendation]:
        """The k best items of the catalogue for a known user or a bare history, as protocol ``full`` is evaluated.

        With a fusion the candidates are the union of the collaborative, the joint and the textual nearest items; fusion
        orders them, and the best are ordered again with the language model's evidence. Without one the backbone gives
        the candidates, and the language model orders the best of them. A user without a history gets the most popular
        items. Where k asks for more than was retrieved, the rest of the catalogue follows in the backbone's order.

        Args:
            user: a known user's id.
            history: item ids, oldest first, in place of a user.
            k: number of items.
            with_history: whether items of the history may be recommended again (protocol ``full-repeat``).
            num_ranked: the number of best candidates that the language model orders; the recipe's where None.
            use_llm: False ranks without the language model, in a fraction of the time.
        """
        if k < 1:
            raise InputError(f"got k = {k}, expected at least 1.")
        known = self.history_of(user, history)
        options: dict[str, Any] = {"with_history": with_history, "num_ranked": num_ranked, "use_llm": use_llm}
        scored = next(self.model.best_of_catalogue([known], k, **options))
        return self._recommendations(known, scored, "catalogue", k)

    def recommend_all(
        self,
        out: Path | str,
        *,
        k: int = 10,
        use_llm: bool = True,
        engine: Engine | None = None,
        gpus: float | None = None,
        users_a_part: int = USERS_A_PART,
        observer: Observer = ignore,
    ) -> dict[str, Any]:
        """``recommend`` for every user of the data set, as Parquet files in ``OUT/parts``; what was stopped goes on.

        A row is ``user_id``, ``rank`` from 0, ``item_id``, ``score``, and with a fusion ``contributions``, a struct of
        what each evidence adds.

        Args:
            out: folder or URL; new, or of the same job.
            k: how many items a user.
            use_llm: False orders by everything else, in a fraction of the time.
            engine: where it is done, such as ``Processes(4)``; this process where None. The bytes do not depend on it.
            gpus: accelerators of a task on a cluster, or a share of one, which this process need not have; None is one
                where the language model reads and this process has one.
            users_a_part: users of one file.
            observer: sees the progress.

        Returns:
            What ``OUT/recommendations.json`` holds: ``request``, ``users``, and the names of ``parts``.

        Raises:
            InputError: k below 1, accelerators that no task can have, or a folder that holds something else.
        """
        progress = partial(observer, "recommend_all")
        given: dict[str, Any] = {
            "engine": engine, "gpus": gpus, "users_a_part": users_a_part, "on_progress": progress
        }  # fmt: skip
        return recommend_all(self.model, self.location, out, k=k, use_llm=use_llm, **given)

    def add_items(self, items: Sequence[Mapping[str, Any]], *, cache: Path | None = None) -> list[str]:
        """Adds new items to the run, which can be recommended at once; nothing is retrained, nothing stored changes.

        An item is embedded by its text. Statistics of training stay: counts, word weights, co-occurrence.

        Args:
            items: ``item_id``, ``title``, ``description`` and ``genres`` of each; an id, and a title or a description,
                must be there.
            cache: folder of cached text embeddings.

        Returns:
            The added ids.

        Raises:
            InputError: an id is known, missing or given twice, or an item has no text.
        """
        from allrec.runs.add_items import add_items

        priors_of = self.model.priors_of_new if self.model.is_llm_within_reach else None
        model, cache = self.model, cache or default_cache()
        added = add_items(model.run, model.catalogue, items, cache, priors_of, model.device)
        self.model = self.model.reloaded()
        return added.item_ids

    def generate(
        self,
        *,
        user: Id | None = None,
        history: Sequence[Id] | None = None,
        task: Task = "title",
        candidates: Sequence[Id] | None = None,
        k: int = 1,
    ) -> list[WrittenTitle] | list[WrittenGenres]:
        """Texts that the language model generates for a known user or a bare history, not restricted to the catalogue.

        Args:
            user: a known user's id.
            history: item ids, oldest first, in place of a user.
            task: "title" of the next item, out of candidates, or "genres" that the user likes.
            candidates: item ids that the prompt lists; the first of ``recommend``'s where None. Only for "title", and
                only where the run's prompts list candidates at all.
            k: number of texts, likeliest first: 1 is greedy, more come of a beam as wide.

        Raises:
            InputError: an unknown id or task, a data set without genres, or candidates that outgrow the prompt.
        """
        from allrec.llm.generation import TASKS, write_genres, write_titles

        if task not in TASKS:
            raise InputError(f"unknown task {task!r}: {nearest(task, list(TASKS))}.")
        known, model = self.history_of(user, history), self.model
        users = model.represent([known])
        if task == "genres":
            if candidates is not None:
                raise InputError("candidates are titles to choose from; genres have none. Leave them out.")
            return write_genres(model.titles, model.catalogue, users, [known], k)[0]
        listed = self._listed(known, candidates)
        return write_titles(model.titles, model.catalogue, users, [known], listed, k)[0]

    def _listed(self, known: Int[ndarray, "length"], candidates: Sequence[Id] | None) -> Int[ndarray, "1 candidates"]:
        """The candidates that a prompt for a title lists."""
        model = self.model
        if not model.titles.builder.lists_candidates:
            if candidates is not None:
                raise InputError(
                    "this run's prompts list no candidates, so none can be given. Leave them out, or train with --set "
                    "prompt.lists_candidates=true."
                )
            return np.full((1, 0), -1)
        if candidates is not None:
            return self._given(candidates)[None]
        ranked = model.backbone_ranker.rank_catalogue(histories_of([known]), np.array([-1]))
        return first_that_fit(next(ranked), model.backbone_ranker.num_ranked, model.titles.fits_each)

    def history_of(self, user: Id | None, history: Sequence[Id] | None) -> Int[ndarray, "length"]:
        """Positions of the items of a known user or of a bare history.

        Raises:
            InputError: an unknown id, both or neither given, or a bare string in place of a list.
        """
        if (user is None) == (history is None):
            raise InputError("give either a user or a history.")
        if user is not None:
            return self.model.catalogue.history(self.model.catalogue.user(user)).astype(np.int64)
        given = ids_of([] if history is None else history, "item", "history")
        return np.array([self.model.catalogue.item(item_id) for item_id in given], np.int64)

    def _given(self, candidates: Sequence[Id]) -> Int[ndarray, "n"]:
        if not len(candidates):
            raise InputError("no candidates were given, expected at least one item id.")
        items = np.array([self.model.catalogue.item(item_id) for item_id in ids_of(candidates, "item", "candidates")])
        if len(np.unique(items)) < len(items):
            raise InputError("a candidate is in the list twice; give each item once.")
        return items

    def _recommendations(
        self, history: Int[ndarray, "length"], scored: Scored, scope: Scope, k: int | None = None
    ) -> list[Recommendation]:
        """The best of one user's candidates."""
        model, places = self.model, scored.best(k)[0]
        places = places[scored.items[0, places] >= 0]
        if len(places) == 0:
            return []
        items, is_read = scored.items[0, places], scored.is_read[0]
        cf = (model.item_embeddings[items.astype(np.int64)] @ model.represent([history])[0]).tolist()
        ranker = model.ranker
        why = (
            ranker.contributions(scored, 0, places, scope) if isinstance(ranker, FusedRanker) else [None] * len(places)
        )
        return [
            Recommendation(
                item_id=model.catalogue.item_ids[item],
                title=model.catalogue.titles[item],
                score=float(scored.scores[0, place]),
                cf=logit,
                is_cold=bool(model.is_cold[item]),
                llm_log_prob=float(scored.llm[0, place]) if scored.llm is not None and is_read[place] else None,
                contributions=contributions,
            )
            for item, place, logit, contributions in zip(items, places, cf, why, strict=True)
        ]


def begin_training(
    dataset: Dataset,
    run: Path | str,
    recipe: Recipe,
    llm: LanguageModel | None,
    *,
    resume: bool = False,
    cache: Path | None = None,
    device: str | None = None,
) -> Training:
    """Makes or opens the folder of a run whose recipe has chosen its language model; that is None without stage 2."""
    from allrec.runs.stages import Training

    if llm is not None:
        recipe = settled_by(recipe, llm)
    folder = RunFolder.create(run, recipe, describe(dataset), NO_LLM if llm is None else llm.fingerprint, resume)
    return Training(TrainedModel(folder, llm, device), dataset, cache or default_cache())


def settled_by(recipe: Recipe, llm: LanguageModel) -> Recipe:
    """The recipe with what it leaves open decided by the language model that was loaded."""
    return settled(recipe, str(llm.dtype).removeprefix("torch."), llm.num_weights)


def plan_of(recipe: Recipe, folder: Path, observer: Observer = ignore) -> Plan:
    """The evaluation of a recipe; scores that the fitting of fusion stored are reused."""
    from allrec.evaluation.evaluate import Plan
    from allrec.runs.stages import EVALUATE

    where = {"folder": folder, "read_folders": (folder.with_name("fusion"),)}
    return Plan.of(recipe.evaluation, on_progress=partial(observer, EVALUATE), **where)


def head_of(run: RunFolder, dataset: Dataset) -> dict[str, Any]:
    """The entries of ``metrics.json`` about the run itself."""
    from allrec.runs.stages import seconds_of

    return {
        "format": FORMAT_VERSION,
        "dataset": {key: value for key, value in describe(dataset).items() if key != "wording"},
        "recipe": run.manifest["recipe"],
        "seed": run.manifest["seed"],
        "llm": run.manifest["llm"] | {"label": llm_label(run)},
        "seconds": seconds_of(run, dataset.seconds),
    }
