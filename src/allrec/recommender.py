"""The whole system as one object: train it, load it, rank and recommend with it."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from allrec.alignment.measures import measure_alignment
from allrec.config import Recipe, load_recipe
from allrec.data.dataset import Dataset, load_dataset
from allrec.errors import InputError, nearest
from allrec.evaluation.evaluate import Plan, evaluate
from allrec.evaluation.results import save_ranks, with_earlier
from allrec.files import write_json
from allrec.hybrid.features import Users
from allrec.hybrid.fused import Fused
from allrec.hybrid.recommending import order_fused, retrieved_items
from allrec.llm.generating import TASKS, Task, WrittenGenres, WrittenTitle, write_genres, write_titles
from allrec.runs.add_items import add_items
from allrec.runs.pipeline import Observer, ignore, load_scoring, train_stages
from allrec.runs.run_folder import MANIFEST, METRICS, RunFolder
from allrec.runs.scoring import Scoring
from allrec.runs.setup import (
    choose_language_model,
    default_cache,
    describe,
    load_language_model,
    metrics_of,
    plan_of,
    refuse_in_vain,
)
from allrec.runs.tensorboard import recording

NUM_RANKED = 20
"""So many candidates the language model reads, unless told otherwise: as in training."""


@dataclass(frozen=True)
class Recommendation:
    """One recommended item.

    Attributes:
        item_id: the data set's own id.
        title: None where the item has none.
        score: log-likelihood of the title (sum or mean over its tokens, as the recipe says), or None where the language
            model did not read the item; larger is better.
        cf: x_u · E_i, the backbone's logit.
        is_cold: whether the item entered by its text.
        fused: what orders the items of a run with a fusion: the sum of the contributions. The items that the language
            model read stand before the others, whatever these have.
        contributions: what each evidence adds to ``fused``; None without a fusion.
    """

    item_id: str
    title: str | None
    score: float | None
    cf: float
    is_cold: bool
    fused: float | None = None
    contributions: dict[str, float] | None = None


class AllRec:
    """A trained recommender. Make one with ``train`` or ``from_pretrained``.

    Args:
        scoring: the frozen parts.
        run: the folder they lie in.
    """

    def __init__(self, scoring: Scoring, run: RunFolder) -> None:
        self.scoring, self.run = scoring, run

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
    ) -> "AllRec":
        """Trains every stage of a recipe and evaluates it on validation and test.

        Args:
            dataset: a data set or its folder.
            run: folder to write; new, or with ``resume`` a run's that was stopped.
            recipe: a recipe, its name, or a TOML file.
            llm: any causal language model by name or path, or an embedded one; the recipe's choice where None.
            resume: go on where the run stopped; it ends in the same bytes.
            cache: folder of cached text embeddings.
            device: "cpu", "cuda", ...; the accelerator where there is one.
            observer: told of progress.
            is_evaluated: whether it ends with an evaluation.

        Raises:
            InputError: what is wrong with the data, the recipe or the folder, and what to do.
        """
        dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
        recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
        recipe = choose_language_model(recipe, llm)
        model = load_language_model(recipe, device)
        if not (Path(run) / MANIFEST).is_file():
            refuse_in_vain(dataset, recipe, model, is_evaluated)
        folder = RunFolder.create(run, recipe, describe(dataset), model.fingerprint, resume)
        with recording(folder.path / "events", observer) as recorder:
            system = cls(train_stages(folder, dataset, model, cache or default_cache(), recorder), folder)
        if is_evaluated:
            system.evaluate(dataset, observer=observer)
        return system

    @classmethod
    def from_pretrained(cls, path: Path | str, *, device: str | None = None) -> "AllRec":
        """Loads a run; the language model's own weights come from where the recipe says.

        Raises:
            InputError: no run there, a stage that is not done, a damaged file, or another language model than it had.
        """
        run = RunFolder.open(path)
        model = load_language_model(run.recipe(), device)
        if model.fingerprint != run.manifest["llm"]:
            raise InputError(
                f"{path} was trained with {run.manifest['llm']}, got {model.fingerprint}. Give the same weights."
            )
        if run.recipe().llm.enabled:
            run.folder("language_model")
        if run.recipe().fusion.enabled:
            run.folder("fusion")
        return cls(load_scoring(run, model), run)

    def save_pretrained(self, path: Path | str) -> None:
        """Copies the run folder: all that serving needs but the language model's own weights."""
        if Path(path).exists() and any(Path(path).iterdir()):
            raise InputError(f"{path} is not empty. Give a new folder.")
        shutil.copytree(self.run.path, path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.part"))

    def push_to_hub(self, name: str, *, private: bool = True) -> str:
        """Uploads the run folder to the Hugging Face hub and returns its address; needs a login there."""
        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(name, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=str(self.run.path)))

    def evaluate(
        self, dataset: Dataset | Path | str, *, plan: Plan | None = None, observer: Observer = ignore
    ) -> dict[str, Any]:
        """Scores the system and writes ``metrics.json``; what an earlier evaluation found under other protocols stays.

        Args:
            dataset: the data set of the run.
            plan: what to score; the recipe's choice where None.
            observer: told of progress.

        Returns:
            What ``metrics.json`` holds.

        Raises:
            InputError: another data set than the run's, or one with nobody to evaluate.
        """
        dataset = dataset if isinstance(dataset, Dataset) else load_dataset(dataset)
        self.run.check_dataset(dataset.sha256, dataset.name)

        with self.run.stage("evaluate") as folder:
            plan = plan or plan_of(self.run.recipe(), folder, partial(observer, "evaluate"))
            rankings = with_earlier(folder, evaluate(self.scoring, dataset, plan))
            save_ranks(folder, rankings, dataset)
        metrics = metrics_of(self.run, dataset, rankings)
        scoring = self.scoring
        metrics["alignment"] = measure_alignment(
            scoring.alignment, scoring.item_embeddings, scoring.text_embeddings, scoring.catalogue.train_counts
        )
        write_json(self.run.path / METRICS, metrics)
        return metrics

    def rank(
        self,
        candidates: Sequence[str],
        *,
        user: str | None = None,
        history: Sequence[str] | None = None,
        use_llm: bool = True,
    ) -> list[Recommendation]:
        """Ranks given items for a known user or a bare history, best first.

        With a fusion all evidence orders them, and the language model reads the best few where there are many.

        Args:
            candidates: item ids, each once.
            user: a known user's id.
            history: item ids, oldest first, in place of a user.
            use_llm: False ranks by everything else, in a fraction of the time.

        Raises:
            InputError: an unknown id, an item given twice, or candidates that outgrow the model's prompt.
        """
        items = self._given(candidates)
        told = self.history_of(user, history)
        if self.scoring.fused is not None:
            return self._fused(self.scoring.fused, told, items, None if use_llm else 0)
        if not use_llm:
            return self._by_backbone(self.scoring.represent([told]), items)
        return self._ranked(self.scoring.represent([told]), told, items)

    def recommend(
        self,
        *,
        user: str | None = None,
        history: Sequence[str] | None = None,
        k: int = 10,
        with_history: bool = False,
        num_ranked: int | None = None,
        use_llm: bool = True,
    ) -> list[Recommendation]:
        """The k best items of the whole catalogue for a known user or a bare history.

        With a fusion the candidates are the union of the collaborative, the joint and the textual nearest items; fusion
        orders them, and the best are ordered again with the language model's evidence. Without one the backbone takes
        the candidates; the language model orders the best of them; the rest follow as the backbone has them. A user
        without a history gets the most popular items.

        Args:
            user: a known user's id.
            history: item ids, oldest first, in place of a user.
            k: how many.
            with_history: whether items of the history may be recommended again.
            num_ranked: how many the language model orders; as the recipe has it with a fusion, else 20, or as many
                as its prompt has room for.
            use_llm: False orders by everything else, in a fraction of the time.
        """
        if k < 1:
            raise InputError(f"got k = {k}, expected at least 1.")
        told = self.history_of(user, history)
        fused = self.scoring.fused
        if fused is not None and len(told):
            found = retrieved_items(fused, told, k, with_history)
            return self._fused(fused, told, found.candidates[0], num_ranked if use_llm else 0, found.users, k)
        representation = self.scoring.represent([told])
        order = self._retrieved(representation, told, with_history)
        if not use_llm:
            return self._by_backbone(representation, order[:k], is_ordered=True)
        num_read = len(self._listed(order)) if num_ranked is None else num_ranked
        best = self._ranked(representation, told, order[:num_read])
        rest = [self._recommendation(item, representation[0], None) for item in order[num_read:k]]
        return (best + rest)[:k]

    def add_items(self, items: Sequence[Mapping[str, Any]], *, cache: Path | None = None) -> list[str]:
        """New items join the run and can be recommended at once; nothing is retrained, nothing stored changes.

        An item enters by its text. What was counted in training stays: counts, word weights, who bought what.

        Args:
            items: ``item_id``, ``title``, ``description`` and ``genres`` of each; an id, and a title or a description,
                must be there.
            cache: folder of cached text embeddings.

        Returns:
            The ids that joined.

        Raises:
            InputError: an id is known, missing or given twice, or an item has no text.
        """
        added = add_items(self.run, self.scoring, items, cache or default_cache())
        self.scoring = load_scoring(self.run, self.scoring.llm)
        return added.item_ids

    def generate(
        self,
        *,
        user: str | None = None,
        history: Sequence[str] | None = None,
        task: Task = "title",
        candidates: Sequence[str] | None = None,
        k: int = 1,
    ) -> list[WrittenTitle] | list[WrittenGenres]:
        """What the language model writes for a known user or a bare history; nothing keeps it to the catalogue.

        Args:
            user: a known user's id.
            history: item ids, oldest first, in place of a user.
            task: "title" asks for the next item, out of candidates; "genres" for the genres that the user likes.
            candidates: item ids that the prompt lists; the first of ``recommend``'s where None. Only for "title".
            k: so many texts, likeliest first: 1 is greedy, more come of a beam as wide.

        Raises:
            InputError: an unknown id or task, a data set without genres, or candidates that outgrow the prompt.
        """
        if task not in TASKS:
            raise InputError(f"unknown task {task!r}: {nearest(task, list(TASKS))}.")
        told = self.history_of(user, history)
        users = self.scoring.represent([told])
        if task == "genres":
            if candidates is not None:
                raise InputError("candidates are titles to choose from; genres have none. Leave them out.")
            return write_genres(self.scoring, users, [told], k)[0]
        listed = self._listed(self._retrieved(users, told)) if candidates is None else self._given(candidates)
        return write_titles(self.scoring, users, [told], listed[None], k)[0]

    def history_of(self, user: str | None, history: Sequence[str] | None) -> Int[ndarray, "length"]:
        """Positions of the items of a known user or of a bare history."""
        if (user is None) == (history is None):
            raise InputError("give either a user or a history.")
        if user is not None:
            return self.scoring.catalogue.history(self.scoring.catalogue.user(user)).astype(np.int64)
        return np.array([self.scoring.catalogue.item(item_id) for item_id in history or []], np.int64)

    def _listed(self, order: Int[ndarray, "n"]) -> Int[ndarray, "listed"]:
        """The first items of an order, as many as the language model reads and its prompt has room for."""
        listed = order[:NUM_RANKED]
        while len(listed) > 1 and not self.scoring.can_list(listed[None]):
            listed = listed[:-1]
        return listed

    def _given(self, candidates: Sequence[str]) -> Int[ndarray, "n"]:
        if not candidates:
            raise InputError("no candidates were given, expected at least one item id.")
        items = np.array([self.scoring.catalogue.item(item_id) for item_id in candidates])
        if len(np.unique(items)) < len(items):
            raise InputError("a candidate stands in the list twice; give each item once.")
        return items

    def _retrieved(
        self, representation: Float[Tensor, "1 dim"], told: Int[ndarray, "length"], with_history: bool = False
    ) -> Int[ndarray, "n"]:
        """Items in the backbone's order, best first; by popularity where there is no history."""
        scores = (
            (self.scoring.item_embeddings @ representation[0]).numpy()
            if len(told)
            else self.scoring.catalogue.train_counts.astype(float)
        )
        if not with_history:
            scores = scores.copy()
            scores[told] = -np.inf
        order = np.argsort(-scores, kind="stable")
        return order[np.isfinite(scores[order])]

    def _ranked(
        self, representation: Tensor, told: Int[ndarray, "length"], items: Int[ndarray, "n"]
    ) -> list[Recommendation]:
        scores = self.scoring.score_with_llm(representation, [told], items[None])[0]
        order = np.argsort(-scores, kind="stable")
        return [self._recommendation(items[place], representation[0], float(scores[place])) for place in order]

    def _fused(
        self,
        fused: Fused,
        told: Int[ndarray, "length"],
        items: Int[ndarray, "n"],
        num_ranked: int | None,
        users: Users | None = None,
        k: int | None = None,
    ) -> list[Recommendation]:
        ordered = order_fused(self.scoring, fused, told, items, "catalogue", num_ranked=num_ranked, users=users, k=k)
        user = self.scoring.represent([told])[0]
        rows = zip(*ordered, strict=True)
        return [
            replace(
                self._recommendation(item, user, None if np.isnan(read) else float(read)),
                fused=float(score),
                contributions=why,
            )
            for item, score, read, why in rows
        ]

    def _by_backbone(
        self, representation: Tensor, items: Int[ndarray, "n"], is_ordered: bool = False
    ) -> list[Recommendation]:
        found = [self._recommendation(item, representation[0], None) for item in items]
        return found if is_ordered else sorted(found, key=lambda item: -item.cf)

    def _recommendation(self, item: int, representation: Tensor, score: float | None) -> Recommendation:
        cf = float(self.scoring.item_embeddings[item] @ representation)
        return Recommendation(
            self.scoring.catalogue.item_ids[item],
            self.scoring.catalogue.titles[item],
            score,
            cf,
            bool(self.scoring.is_cold[item]),
        )
