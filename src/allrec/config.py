"""A recipe: the configuration of all parts, read from TOML, changed by ``--set``; and which language model it takes."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import tomli_w
import torch
from pydantic import Field, model_validator

from allrec.alignment.model import AlignmentStageConfig
from allrec.alignment.text_encoder import TextEncoderConfig
from allrec.alignment.text_tuning import TextTuningConfig
from allrec.backbones.registry import BackboneConfig
from allrec.errors import Config, InputError, nearest
from allrec.evaluation.evaluate import EvaluationConfig
from allrec.hybrid.fitting import FusionStageConfig
from allrec.llm.adapter import LoraConfig
from allrec.llm.model_config import LanguageModelConfig
from allrec.llm.packaged import DEFAULT, PACKAGED, is_installed
from allrec.llm.prompt import PromptConfig
from allrec.llm.readout_training import ReadOutStageConfig
from allrec.llm.soft_token_training import SoftTokensStageConfig
from allrec.llm.text_states import SecondTextConfig

LISTING_WEIGHTS = 1_000_000_000
"""Models with fewer parameters are confused by a list of candidates in the prompt (docs/experiments.md)."""


SECOND, TUNED = "second_text", "text_tuning"
"""Further text encoders: keys of a recipe, stages, and names of their similarities."""


PUBLISHED = "facebook/opt-6.7b"
"""The paper's language model."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files of a hub's model, one of which is there where its weights are."""


class LanguageModelChoice(Config):
    """The language model that a recipe is written for, and a small one that stands in for it."""

    enabled: bool = Field(
        True, description="Whether stage 2 is trained and the language model ranks; without it cf, joint and fusion do."
    )
    published: LanguageModelConfig = LanguageModelConfig(name=PUBLISHED)
    stand_in: str = Field(
        DEFAULT, min_length=1, description="Used where none is requested and the published one is out of reach."
    )
    chosen: LanguageModelConfig | None = Field(None, description="The one that was used; written when a run begins.")
    tuning: Literal["none", "lora"] = Field(
        "none",
        description="Whether stage 2 leaves the model as it is (the paper), or tunes low-rank adapters beside its "
        "frozen weights; needs the extra lora.",
    )
    lora: LoraConfig = LoraConfig()

    @model_validator(mode="before")
    @classmethod
    def _dtype_of_the_published(cls, values: Any) -> Any:
        """``llm.dtype`` is short for ``llm.published.dtype``, which the model that is chosen takes over."""
        if not isinstance(values, dict) or "dtype" not in values:
            return values
        published = values.get("published", {})
        published = dict(published) if isinstance(published, dict) else published.model_dump()
        rest = {name: value for name, value in values.items() if name != "dtype"}
        return rest | {"published": {"name": PUBLISHED, **published, "dtype": values["dtype"]}}


class Recipe(Config):
    """All settings of a run besides the data."""

    name: str = Field("custom", min_length=1, description="Name in tables.")
    seed: int = Field(0, ge=0, description="Fixes every random choice.")
    cold_below: int = Field(1, ge=0, description="Items with fewer training interactions enter by their text.")
    backbone: BackboneConfig = BackboneConfig()
    text: TextEncoderConfig = TextEncoderConfig()
    second_text: SecondTextConfig = SecondTextConfig()
    text_tuning: TextTuningConfig = TextTuningConfig()
    alignment: AlignmentStageConfig = AlignmentStageConfig()
    llm: LanguageModelChoice = LanguageModelChoice()
    prompt: PromptConfig = PromptConfig()
    soft_tokens: SoftTokensStageConfig = SoftTokensStageConfig()
    readout: ReadOutStageConfig = ReadOutStageConfig()
    fusion: FusionStageConfig = FusionStageConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    refit: Literal["none", "valid", "all"] = Field(
        "none",
        description="Whether the parts are trained again at the end, on validation targets too (its test rows are "
        "evaluated next to the others), or on all interactions (for service; never evaluated).",
    )

    @property
    def further_encoders(self) -> list[str]:
        """Names of the text encoders beside the sentence encoder; they give evidence to a fusion alone."""
        wanted = {SECOND: self.second_text.enabled, TUNED: self.text_tuning.enabled}
        return [name for name, is_wanted in wanted.items() if self.fusion.enabled and is_wanted]


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in files("allrec.recipes").iterdir() if entry.name.endswith(".toml")
    )


def load_recipe(name: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe that comes with the package, or a TOML file.

    Args:
        name: a recipe's name or a path.
        overrides: ``key=value`` with dots between keys; values as in TOML, and a bare word is a string.

    Raises:
        InputError: no such recipe, no TOML, an unknown key or a value of the wrong kind.
    """
    values = _read(name)
    for override in overrides:
        _apply(values, override)
    return Recipe(**values)


def dump_recipe(recipe: Recipe) -> str:
    """The complete recipe as TOML; ``load_recipe`` reads it back."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise InputError(f"no such recipe file: {path}. Recipes by name: {', '.join(recipe_names())}")
        text = _read_text(path)
    elif name in recipe_names():
        text = files("allrec.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8")
    else:
        raise InputError(f"unknown recipe {name!r}: {nearest(name, recipe_names())}. A path to a .toml file does too.")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the recipe {name} is no TOML: {error}") from None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"the recipe {path} is no UTF-8 text: {error}. Save it as UTF-8.") from None


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InputError(f"got --set {override!r}, expected key=value such as backbone.loop.epochs=20")
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = values.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise InputError(f"--set {override!r}: {parent!r} is a value, not a table, so it has no key {last!r}")
        values = inner
    values[last] = read_value(text.strip())


def read_value(text: str) -> Any:
    """The value after ``key=``: as in TOML, ``none``, or a bare word, which is a string."""
    if text == "none":
        return None
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def choose_language_model(recipe: Recipe, requested: str | None) -> Recipe:
    """The recipe with its language model decided, so that a run's recipe says which one was used.

    Taken is the requested one; else the recipe's own where an accelerator is there and the weights are on disk; else
    the one that stands in for it, or where that is not installed the default one. Precision and savings are the
    recipe's, whichever it is.
    """
    if recipe.llm.chosen is not None and requested is None:
        return recipe
    if requested is not None:
        chosen = recipe.llm.published.changed(name=requested, revision=None)
    elif torch.cuda.is_available() and is_within_reach(recipe.llm.published):
        chosen = recipe.llm.published
    else:
        stand_in = recipe.llm.stand_in
        name = DEFAULT if stand_in in PACKAGED and not is_installed(stand_in) else stand_in
        chosen = recipe.llm.published.changed(name=name, revision=None)
    return recipe.changed(llm__chosen=chosen)


def chosen_of(recipe: Recipe) -> LanguageModelConfig:
    """The language model that a run of the recipe has; the one that stands in where none has been chosen yet."""
    return recipe.llm.chosen or recipe.llm.published.changed(name=recipe.llm.stand_in, revision=None)


def settled(recipe: Recipe, dtype: str, num_weights: int) -> Recipe:
    """The recipe with what it leaves to the language model decided, so that a run says what it was.

    Args:
        recipe: has chosen its language model.
        dtype: precision that it was loaded in.
        num_weights: parameters that it has.
    """
    if recipe.prompt.lists_candidates is None:
        recipe = recipe.changed(prompt__lists_candidates=num_weights >= LISTING_WEIGHTS)
    return recipe.changed(llm__chosen=chosen_of(recipe).changed(dtype=dtype))


def is_within_reach(config: LanguageModelConfig) -> bool:
    """Whether a model's weights are on disk: a folder, or in the hub's cache. Nothing is downloaded to find out."""
    if config.name in PACKAGED:
        return is_installed(config.name)
    if Path(config.name).expanduser().exists():
        return True
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(config.name, file, revision=config.revision) for file in WEIGHTS]
    except HFValidationError:  # the path of another machine's folder or file
        return False
    return any(isinstance(file, str) for file in found)
