"""A trained model: all that the stages of a run learned, frozen, read from its folder once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from allrec.alignment.model import Alignment, NoAlignment, new_alignment
from allrec.alignment.text_cache import default_cache
from allrec.backbones.base import Backbone, StatesBackbone, encode_histories, freeze
from allrec.backbones.registry import BackboneConfig, extended, make_backbone
from allrec.config import Recipe, chosen_of, is_within_reach
from allrec.data.catalogue import Catalogue
from allrec.data.items import NewItems
from allrec.errors import InputError
from allrec.files import load_tensors, read_json
from allrec.hybrid.content import load_content_parts, load_training_histories
from allrec.hybrid.features import Evidence, Learned, collect, histories_of
from allrec.hybrid.fusion import LENGTH, PRIOR, SCOPES, Scope, load_addition, load_fusion
from allrec.hybrid.ranking import BackboneRanker, FusedRanker, LlmReader, Ranker, Scored
from allrec.hybrid.similarity import Occurrences
from allrec.llm.soft_tokens import SoftTokens, item_inputs_of
from allrec.runs.further_texts import encode_further
from allrec.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from allrec.hybrid.content import CatalogueContent
    from allrec.llm.language_model import LanguageModel
    from allrec.llm.prompt import PromptBuilder
    from allrec.llm.readout import ReadOut
    from allrec.llm.readout_training import Reader
    from allrec.llm.title_scorer import TitleScorer

ADAPTER = "adapter.safetensors"
"""Beside stage 2, where it tuned the language model."""
PRIORS = "priors.safetensors"
"""Beside stage 2 and beside items that were added: log P(title | no history)."""
TEXT = "text"
"""The similarity by Q."""
SHAPE = "model.json"
"""Of a backbone that others trained, whose sizes no recipe decides."""


def no_language_model() -> InputError:
    """The error for what only a language model can do, in a run without one."""
    return InputError(
        "this run has no language model: it was trained with llm.enabled=false. It can recommend and rank; for more, "
        "train another run with llm.enabled=true."
    )


class TrainedModel:
    """The frozen parts of a run, over its catalogue and the items that were added to it.

    Each part is read at its first use and kept. ``load`` reads all but the language model, which may not be there at
    all where nothing asks for it; training, which begins before most parts exist, reads them as its stages are done.

    Args:
        run: the run.
        llm: its language model where it is in memory; None loads it at its first use.
        device: "cpu", "cuda", ...: where the language model answers, texts are encoded, and backbone and stage 1 are
            trained; None is the accelerator where there is one. What is small answers on the CPU.
    """

    def __init__(self, run: RunFolder, llm: LanguageModel | None = None, device: str | None = None) -> None:
        self.run, self.device, self._llm = run, device_of(device), llm

    @classmethod
    def load(cls, run: RunFolder, llm: LanguageModel | None = None, device: str | None = None) -> TrainedModel:
        """Reads a trained run; each file is checked against its checksum.

        Raises:
            InputError: a stage that its recipe wants is not done, or a file is damaged.
        """
        return cls(run, llm, device).complete()

    @classmethod
    def load_without_users(cls, run: RunFolder, occurrences: Occurrences | None, device: str | None) -> TrainedModel:
        """Reads a trained run for users that it need not know, in memory that does not grow with their number.

        Args:
            run: see ``load``.
            occurrences: counted before, see the attribute; None where the run has no fusion.
            device: see ``load``.
        """
        model = cls(run, device=device)
        vars(model).update(catalogue=read_catalogue(run, has_users=False))
        if occurrences is not None:
            vars(model).update(occurrences=occurrences)
        return model.complete()

    def complete(self) -> TrainedModel:
        """Reads what has not been read yet, all but the language model, and returns the model itself.

        Raises:
            InputError: see ``load``.
        """
        if self.has_llm:
            self.run.verified_folder("language_model")
            if self.recipe.readout.enabled:
                self.run.verified_folder("readout")
        _ = (self.catalogue, self.joint_embeddings, self.ranker)
        return self

    def reloaded(self) -> TrainedModel:
        """The same run read again, after items were added to it; the language model stays in memory."""
        return TrainedModel(self.run, self._llm, self.device).complete()

    def with_items(self, items: NewItems, text_embeddings: Float[Tensor, "items text_dim"]) -> TrainedModel:
        """The same model with new items behind the last, as ``add_items`` adds them, and nothing written.

        Args:
            items: none of which the catalogue has.
            text_embeddings: Q of them, by the run's text encoder.
        """
        other = TrainedModel(self.run, self._llm, self.device)
        kept = ("trained_backbone", "alignment", "soft_tokens", "stored_priors", "tuned_llm")
        vars(other).update({name: vars(self)[name] for name in kept if name in vars(self)})
        catalogue, texts = self.catalogue.extended(items), torch.cat([self.text_embeddings, text_embeddings])
        new = encode_further(self.run, items.texts, default_cache(), self.device)
        further = {name: torch.cat([known, new[name]]) for name, known in self.further_texts.items()}
        vars(other).update(catalogue=catalogue, text_embeddings=texts, further_texts=further)
        return other.complete()

    def over(
        self, catalogue: Catalogue, text_embeddings: Float[Tensor, "items text_dim"], backbone: Backbone
    ) -> TrainedModel:
        """The same frozen parts over another catalogue, all of whose items enter by their text; without a fusion."""
        other = TrainedModel(self.run, self.llm if self.has_llm else None, self.device)
        parts: dict[str, Any] = {"stored_priors": np.zeros(0, np.float32)}
        parts |= {"catalogue": catalogue, "text_embeddings": text_embeddings, "backbone": backbone}
        parts |= {"alignment": self.alignment, "fused_ranker": None}
        vars(other).update(parts, is_cold=torch.ones(catalogue.num_items, dtype=torch.bool))
        return other

    @property
    def loaded_llm(self) -> LanguageModel | None:
        """The language model where it is in memory already."""
        return self._llm

    @property
    def recipe(self) -> Recipe:
        """The complete recipe."""
        return self.run.recipe()

    # What stage 1 and the stages before it learned.

    @cached_property
    def catalogue(self) -> Catalogue:
        """Items and known users; items that were added are the last."""
        return read_catalogue(self.run)

    @cached_property
    def text_embeddings(self) -> Float[Tensor, "items text_dim"]:
        """Q of every item."""
        added = [load_tensors(folder / "embeddings.safetensors")["embeddings"] for folder in self.run.added()]
        return torch.cat([read_texts(self.run), *added])

    @cached_property
    def further_texts(self) -> dict[str, Float[Tensor, "items further_dim"]]:
        """Every item's text by each further encoder of the run."""
        return read_further(self.run)

    @cached_property
    def content_texts(self) -> Float[Tensor, "items all_dim"]:
        """What the content parts read of every item's text: Q, and by each further encoder a unit vector behind it."""
        return beside(self.text_embeddings, self.further_texts)

    @cached_property
    def alignment(self) -> Alignment | NoAlignment:
        """Stage 1."""
        return read_alignment(self.run, self.trained_backbone.dim, self.text_embeddings.shape[1])

    @cached_property
    def trained_backbone(self) -> Backbone:
        """The backbone over the items that it was trained on."""
        return read_backbone(self.run, self.catalogue.num_items - self.catalogue.num_added)

    @cached_property
    def backbone(self) -> Backbone:
        """x_u and E of every item; one that was added has the row that stage 1 decodes from its text."""
        return with_added(self.trained_backbone, self.alignment, self.text_embeddings)

    @cached_property
    def is_cold(self) -> Bool[Tensor, "items"]:
        """Which items enter by their text."""
        is_added = np.arange(self.catalogue.num_items) >= self.catalogue.num_items - self.catalogue.num_added
        return torch.from_numpy((self.catalogue.train_counts < self.recipe.cold_below) | is_added)

    @cached_property
    def item_embeddings(self) -> Float[Tensor, "items dim"]:
        """E of every item."""
        return self.backbone.item_embeddings().detach()

    @cached_property
    def joint_items(self) -> Float[Tensor, "items joint"]:
        """e_i of every item, or q_i where it is cold."""
        with torch.no_grad():
            joint: Tensor = self.alignment.joint_items(self.item_embeddings, self.text_embeddings, self.is_cold)
        return joint

    @cached_property
    def joint_embeddings(self) -> Float[Tensor, "items dim"]:
        """What x_u meets in the joint score."""
        with torch.no_grad():
            embeddings: Tensor = self.alignment.scored_items(self.joint_items)
        return embeddings

    def represent(self, histories: Sequence[Int[ndarray, "length"]]) -> Float[Tensor, "users dim"]:
        """x_u of each history, oldest item first."""
        known = histories_of(histories)
        return encode_histories(self.backbone, known.items, known.starts, known.ends)

    # The evidence and the ranking.

    @cached_property
    def occurrences(self) -> Occurrences:
        """How often items occur in training histories, alone and near each other."""
        return Occurrences.of(load_training_histories(self.run.verified_folder("content")), self.catalogue.num_items)

    @cached_property
    def evidence(self) -> Evidence:
        """All evidence but the language model's."""
        folder, config = self.run.verified_folder("content"), self.recipe.fusion.evidence
        content = load_content_parts(folder, self.catalogue.titles, self.content_texts, config)
        own = Learned(self.backbone, content, self.joint_embeddings)
        others = [self._further_training(number, content.catalogue) for number in range(1, config.ensemble)]
        texts = {TEXT: self.text_embeddings, **self.further_texts}
        return collect(self.occurrences, [own, *others], config.search, texts)

    def _further_training(self, number: int, content: CatalogueContent) -> Learned:
        """What a further training of the ensemble learned, over the same items."""
        run, texts, config = self.run, self.text_embeddings, self.recipe.fusion.evidence
        folder = run.verified_folder("ensemble")
        file = folder / f"{number}-backbone.safetensors"
        num_trained = self.catalogue.num_items - self.catalogue.num_added
        # A backbone that others trained is the run's own in every training.
        backbone = read_backbone(run, num_trained, file if file.is_file() else None)
        alignment = read_alignment(run, backbone.dim, texts.shape[1], folder / f"{number}-alignment.safetensors")
        backbone = with_added(backbone, alignment, texts)
        with torch.no_grad():
            joint = alignment.scored_items(alignment.joint_items(backbone.item_embeddings(), texts, self.is_cold))
        parts = load_content_parts(
            folder, self.catalogue.titles, self.content_texts, config, f"{number}-content", content
        )
        return Learned(backbone, parts, joint)

    @cached_property
    def backbone_ranker(self) -> BackboneRanker:
        """Ranks by the backbone alone."""
        recipe = self.recipe
        return BackboneRanker(self.backbone, self.catalogue.train_counts, recipe.fusion.num_ranked, recipe.seed)

    @cached_property
    def fused_ranker(self) -> FusedRanker | None:
        """Ranks by a fusion of all evidence; None where the recipe has none."""
        config = self.recipe.fusion
        if not config.enabled:
            return None
        folder = self.run.verified_folder("fusion")
        fusions = {scope: load_fusion(folder, scope) for scope in SCOPES}
        additions = {
            scope: load_addition(folder, f"{scope}-llm") for scope in SCOPES if (folder / f"{scope}-llm.json").is_file()
        }
        return FusedRanker.of(self.evidence, fusions, additions, config, self.recipe.seed)

    @property
    def ranker(self) -> Ranker:
        """The ranking that is served: the fusion's, or the backbone's where there is none."""
        return self.fused_ranker or self.backbone_ranker

    # The language model and what was learned for it.

    @property
    def has_llm(self) -> bool:
        """Whether stage 2 was trained."""
        return self.recipe.llm.enabled

    @property
    def is_llm_within_reach(self) -> bool:
        """Whether the run has a language model, and it is in memory or its weights are on disk."""
        if not self.has_llm or self._llm is not None:
            return self.has_llm
        has_adapters = self.recipe.llm.tuning == "none" or find_spec("peft") is not None
        return has_adapters and is_within_reach(chosen_of(self.recipe))

    @property
    def llm(self) -> LanguageModel:
        """The frozen language model, loaded at its first use.

        Raises:
            InputError: the run has none, it cannot be loaded, or is another one than the run was trained with.
        """
        if not self.has_llm:
            raise no_language_model()
        if self._llm is None:
            llm = load_language_model(self.recipe, self.device)
            self.run.check_llm(llm.fingerprint)
            self._llm = llm
        return self._llm

    @cached_property
    def tuned_llm(self) -> LanguageModel:
        """The language model as stage 2 left it: with the adapter that it learned, if the recipe has one.

        Raises:
            InputError: see ``llm``; the adapter fits another model, or peft is not installed.
        """
        if self.recipe.llm.tuning == "none":
            return self.llm
        llm = self.new_adapter()
        if llm.adapter is not None:
            llm.adapter.read(load_tensors(self.run.verified_folder("language_model") / ADAPTER))
        return llm

    def new_adapter(self) -> LanguageModel:
        """The language model behind an adapter that has learned nothing yet."""
        return self.llm.adapted(self.recipe.llm.lora, self.recipe.seed)

    @cached_property
    def item_inputs(self) -> Float[Tensor, "items joint"]:
        """What F_I reads of every item."""
        return item_inputs_of(self.joint_items, self.recipe.soft_tokens.item_source, self.recipe.seed)

    @cached_property
    def builder(self) -> PromptBuilder:
        """Lays out prompts over the catalogue."""
        from allrec.llm.prompt import PromptBuilder

        return PromptBuilder.of(self.llm, self.catalogue.titles, self.catalogue.wording, self.recipe.prompt)

    @cached_property
    def soft_tokens(self) -> SoftTokens:
        """F_U and F_I.

        Raises:
            InputError: stage 2 has not been trained.
        """
        if not self.has_llm:
            raise no_language_model()
        tensors = load_tensors(self.run.verified_folder("language_model") / "model.safetensors")
        return freeze(SoftTokens.from_tensors(tensors))

    @cached_property
    def titles(self) -> TitleScorer:
        """Scores titles with the language model."""
        from allrec.llm.title_scorer import TitleScorer

        config = self.recipe.evaluation
        return TitleScorer(
            self.tuned_llm, self.builder, self.soft_tokens, self.item_inputs, lambda: self.title_priors,
            seed=self.recipe.seed, normalize=config.normalize, tokens_per_batch=config.llm_tokens_per_batch,
        )  # fmt: skip

    @cached_property
    def stored_priors(self) -> Float[ndarray, "stored"]:
        """log P(title | no history) of the first items, as far as the run has it, in nats."""
        folders = [self.run.verified_folder("language_model"), *self.run.added()]
        files = takewhile(Path.is_file, (folder / PRIORS for folder in folders))
        nothing = np.zeros(0, np.float32)
        return np.concatenate([nothing, *(load_tensors(file)["priors"].numpy() for file in files)])

    @cached_property
    def title_priors(self) -> Float[ndarray, "items"]:
        """log P(title | no history) of every item, in nats; what the run does not have is worked out."""
        missing = np.arange(len(self.stored_priors), self.catalogue.num_items)
        return np.concatenate([self.stored_priors, self.priors_of(self.builder, missing)])

    def priors_of(self, builder: PromptBuilder, items: Int[ndarray, "items"]) -> Float[ndarray, "items"]:
        """log P(title | no history) of some items, in nats: of the model that stage 2 learned against, or made."""
        from allrec.llm.score_files import score_cache
        from allrec.llm.title_scorer import title_priors

        llm = self.llm if self.recipe.soft_tokens.objective == "choice" else self.tuned_llm
        tokens, cache = self.recipe.evaluation.llm_tokens_per_batch, score_cache()
        return title_priors(llm, builder, items, tokens_per_batch=tokens, cache=cache)

    def priors_of_new(self, titles: Sequence[str | None]) -> Float[ndarray, "items"]:
        """log P(title | no history) of titles that the catalogue does not have, in nats."""
        from allrec.llm.prompt import PromptBuilder

        builder = PromptBuilder.of(self.llm, titles, self.catalogue.wording, self.recipe.prompt)
        return self.priors_of(builder, np.arange(len(titles)))

    @cached_property
    def readout(self) -> ReadOut:
        """The read-out head.

        Raises:
            InputError: the run has none.
        """
        from allrec.llm.readout_training import new_readout

        if not (self.has_llm and self.recipe.readout.enabled):
            raise InputError("this run has no read-out head. Train one with: --set readout.enabled=true")
        readout = new_readout(torch.zeros(1, self.backbone.dim), self.reader, self.recipe.readout)
        readout.load_state_dict(load_tensors(self.run.verified_folder("readout") / "model.safetensors"))
        return freeze(readout)

    @property
    def reader(self) -> Reader:
        """What reads a user for the read-out head."""
        from allrec.llm.readout_training import Reader

        return Reader(self.tuned_llm, self.builder, self.backbone, self.joint_items, self.item_inputs, self.soft_tokens)

    @cached_property
    def readout_items(self) -> Float[Tensor, "items readout_dim"]:
        """Every item as the read-out head scores it: by a dot product with ``read``."""
        with torch.no_grad():
            items: Tensor = self.readout.items(self.joint_items)
        return items

    def read(self, histories: Sequence[Int[ndarray, "length"]]) -> Float[Tensor, "users readout_dim"]:
        """What the read-out head makes of each user, in one forward pass of the language model."""
        tokens = self.recipe.evaluation.llm_tokens_per_batch
        return self.reader.read(self.readout, self.represent(histories), histories, tokens)

    def llm_scores(
        self,
        histories: Sequence[Int[ndarray, "length"]],
        candidates: Int[ndarray, "users candidates"],
        name: str = "llm",
        cache: Path | None = None,
    ) -> Float[ndarray, "users candidates"]:
        """The language model's score of every candidate, larger is better; -1 pads, and has minus infinity.

        Args:
            histories: oldest first.
            candidates: item positions, in the order in which the prompt lists them.
            name: "llm" and its controls give log P(title | prompt) as ``evaluation.normalize`` has it; "title_prior"
                and "title_length" what that may leave out; "readout" the head's dot products, of a prompt that
                lists no candidates.
            cache: where scores of prompts without soft tokens are kept for all runs. Evaluations ask again for the same
                users; whoever is served does not, and would fill the disk.
        """
        if name in (PRIOR, LENGTH):
            return self.titles.of_titles(candidates, name)
        if name != "readout":
            return self.titles.score(self.represent(histories), histories, candidates, name, cache)
        items = self.readout_items[torch.from_numpy(candidates.clip(min=0)).long()]
        scores = torch.einsum("ud,ucd->uc", self.read(histories), items)
        return np.where(candidates >= 0, scores.numpy(), np.float32(-np.inf))

    def llm_reader(self, histories: Sequence[Int[ndarray, "length"]]) -> LlmReader:
        """The language model as a ranking of some users asks for it."""

        def score(rows: ndarray, candidates: ndarray, name: str) -> ndarray:
            return self.llm_scores([histories[row] for row in rows], candidates, name)

        return LlmReader(score, self.titles.fits_each)

    def reads_llm(self, scope: Scope) -> bool:
        """Whether the language model's scores are used, so that it is loaded only then."""
        return self.has_llm and bool(self.ranker.llm_names(scope))

    def best_of_catalogue(
        self,
        sequences: Sequence[Int[ndarray, "length"]],
        k: int,
        *,
        with_history: bool = False,
        num_ranked: int | None = None,
        use_llm: bool = True,
    ) -> Iterator[Scored]:
        """Ranks the catalogue for some users, some rows at a time, with k candidates in each where there are so many.

        Args:
            sequences: the users' histories, item positions, oldest first.
            k: number of candidates.
            with_history: see ``AllRec.recommend``.
            num_ranked: see ``AllRec.recommend``.
            use_llm: see ``AllRec.recommend``.
        """
        reader = self.llm_reader(sequences) if use_llm and self.reads_llm("catalogue") else None
        excepted, histories = None if with_history else np.full(len(sequences), -1), histories_of(sequences)
        for scored in self.ranker.rank_catalogue(histories, excepted, reader, depth=k, num_ranked=num_ranked):
            is_short = (scored.items >= 0).sum(axis=1) < k
            if not is_short.any():
                yield scored
                continue
            # Filling compares with the whole catalogue, so it is done for those who need it alone.
            for one, needs_more in zip(map(scored.row, range(len(is_short))), is_short, strict=True):
                yield self.backbone_ranker.filled(one, histories, excepted) if needs_more else one


def device_of(name: str | None) -> str:
    """Where to compute: the device of that name, or for None the accelerator where there is one.

    Raises:
        InputError: torch knows no such device, or it is not there.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise InputError(f"got device {name!r}, expected one that torch can use here: {reason}. Try cpu.") from None
    return name


def load_language_model(recipe: Recipe, device: str | None, runs: Iterable[RunFolder] = ()) -> LanguageModel:
    """Loads the language model that a recipe has chosen.

    Args:
        recipe: names it.
        device: where it goes; None is the accelerator where there is one.
        runs: that it is loaded to go on with, or to be compared with; where one has settled the precision that the
            recipe leaves open, that is taken, whatever its model, so that results of two precisions never mix.
    """
    from allrec.llm.language_model import LanguageModel

    chosen = chosen_of(recipe)
    if chosen.dtype == "auto":
        settled = (chosen_of(run.recipe()).dtype for run in runs if run.recipe().llm.enabled)
        chosen = chosen.changed(dtype=next((dtype for dtype in settled if dtype != "auto"), "auto"))
    return LanguageModel.load(chosen, device_of(device))


@torch.no_grad()
def with_added(
    backbone: Backbone, alignment: Alignment | NoAlignment, text_embeddings: Float[Tensor, "items text_dim"]
) -> Backbone:
    """A backbone over the items that joined, too: each has the row that stage 1 decodes from its text.

    Args:
        backbone: frozen, over the items that were trained on.
        alignment: frozen.
        text_embeddings: of all items, new ones last.
    """
    embeddings = backbone.item_embeddings()
    num_added = len(text_embeddings) - len(embeddings)
    if num_added == 0:
        return backbone
    if not isinstance(backbone, StatesBackbone):
        raise ValueError(f"{type(backbone).__name__} takes no new items")
    # A cold item's joint embedding does not read its item embedding, so these rows only have to be there.
    every = torch.cat([embeddings, torch.zeros(num_added, embeddings.shape[1])])
    is_cold = torch.arange(len(every)) >= len(embeddings)
    joint = alignment.joint_items(every, text_embeddings, is_cold)
    return extended(backbone, alignment.scored_items(joint[len(embeddings) :]))


def read_catalogue(run: RunFolder, *, has_users: bool = True) -> Catalogue:
    """Items of a run, those that were added last, and its users or none."""
    catalogue = Catalogue.load(run.verified_folder("catalogue"), run.wording(), has_users=has_users)
    for folder in run.added():
        catalogue = catalogue.extended(NewItems.load(folder))
    return catalogue


def read_backbone(run: RunFolder, num_items: int, file: Path | None = None) -> Backbone:
    """A backbone of a run, frozen; those of its ensemble have the shape of its own.

    Args:
        run: whose recipe it was trained by.
        num_items: that were trained on.
        file: its tensors; those of the run's own stage where None.
    """
    config, folder = run.recipe().backbone, run.verified_folder("backbone")
    if (folder / SHAPE).is_file():
        config = BackboneConfig(model=read_json(folder / SHAPE))
    model = make_backbone(num_items, config.model, torch.Generator())
    model.load_state_dict(load_tensors(file or folder / "model.safetensors"))
    return freeze(model)


def read_alignment(run: RunFolder, dim: int, text_dim: int, file: Path | None = None) -> Alignment | NoAlignment:
    """Stage 1 of a run, frozen; ``file`` has its tensors, those of the run's own stage where None."""
    alignment = new_alignment(dim, text_dim, run.recipe().alignment.network)
    alignment.load_state_dict(load_tensors(file or run.verified_folder("alignment") / "model.safetensors"))
    return freeze(alignment)


def read_texts(run: RunFolder, stage: str | None = None) -> Float[Tensor, "items text_dim"]:
    """Q of the items that were trained on: as a stage left it, the run's last word where None."""
    last = "alignment" if run.recipe().alignment.tune_text else "text"
    return load_tensors(run.verified_folder(stage or last) / "embeddings.safetensors")["embeddings"]


def read_further(run: RunFolder) -> dict[str, Float[Tensor, "items further_dim"]]:
    """The run's items by each of its further encoders, those that were added last."""
    return {
        name: torch.cat(
            [
                load_tensors(run.verified_folder(name) / "embeddings.safetensors")["embeddings"],
                *(load_tensors(folder / f"{name}.safetensors")["embeddings"] for folder in run.added()),
            ]
        )
        for name in run.recipe().further_encoders
    }


def beside(
    text_embeddings: Float[Tensor, "items text_dim"], further: Mapping[str, Float[Tensor, "items further_dim"]]
) -> Float[Tensor, "items all_dim"]:
    """Q and behind it the further embeddings, all as unit vectors of equal weight; Q itself where there are none."""
    if not further:
        return text_embeddings
    return torch.cat([functional.normalize(one, dim=1) for one in (text_embeddings, *further.values())], dim=1)
