"""The rows of a comparison: which recipes, and which scorer of each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from allrec.backbones.registry import KINDS
from allrec.config import Recipe, load_recipe
from allrec.errors import InputError, nearest
from allrec.experiments.ablations import STAGE_ONE, STAGE_TWO

ABLATIONS = {"stage1": STAGE_ONE, "stage2": STAGE_TWO}
DEFAULT = "a-llmrec"


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: how the table calls it.
        run: how the folders of its runs begin; two rows may share their runs.
        recipe: complete but for the seed and the choice of language model.
        scorer: whose scores are the row's.
    """

    name: str
    run: str
    recipe: Recipe
    scorer: str = "llm"


def run_name(row: Row, seed: int) -> str:
    """The folder of a row's run."""
    return f"{row.run}-seed{seed}"


def rows_of(
    recipes: Sequence[str] = (DEFAULT,),
    *,
    ablations: str | None = None,
    backbones: Sequence[str] = (),
    sets: Sequence[str] = (),
) -> list[Row]:
    """The rows that were asked for, the one that all others are tested against first.

    Args:
        recipes: names or TOML files.
        ablations: the first recipe's ablations of this stage follow it.
        backbones: in place of the first recipe, it on each of these backbones, and each backbone alone.
        sets: ``key=value`` for every recipe; an ablation's own keys come after them.

    Raises:
        InputError: an unknown recipe, ablation or backbone, or two rows of one name.
    """
    if ablations is not None and backbones:
        raise InputError("got --ablations and --backbones, expected one of them. Compare twice, into two folders.")
    if not recipes:
        raise InputError("got no recipe to compare, expected at least one: --recipes a-llmrec")
    rows = [_row(load_recipe(recipe, tuple(sets)), _name(recipe)) for recipe in recipes]
    if ablations is not None:
        rows[1:1] = _ablated(recipes[0], ablations, sets)
    if backbones:
        rows[:1] = [row for kind in backbones for row in _on_backbone(recipes[0], kind, sets)]
    _refuse_twins(rows)
    return rows


def _row(recipe: Recipe, name: str) -> Row:
    return Row(name, _slug(name), recipe.model_copy(update={"name": name}))


def _name(recipe: str) -> str:
    return Path(recipe).stem if recipe.endswith(".toml") else recipe


def _ablated(recipe: str, stage: str, sets: Sequence[str]) -> list[Row]:
    if stage not in ABLATIONS:
        raise InputError(f"got --ablations {stage!r}, expected one of {', '.join(ABLATIONS)}.")
    return [_row(load_recipe(recipe, (*sets, *overrides)), name) for name, overrides in ABLATIONS[stage].items()]


def _on_backbone(recipe: str, kind: str, sets: Sequence[str]) -> list[Row]:
    if kind not in KINDS:
        raise InputError(f"unknown backbone {kind!r}: {nearest(kind, list(KINDS))}.")
    whole = load_recipe(recipe, tuple(sets))
    # What the recipe says of its own backbone's shape holds for another as far as that knows the word.
    said = whole.backbone.model.model_dump(exclude_unset=True)
    shape = {key: value for key, value in said.items() if key in KINDS[kind].model_fields} | {"kind": kind}
    backbone = type(whole.backbone)(**(whole.backbone.model_dump() | {"model": shape}))
    whole = whole.model_copy(update={"backbone": backbone})
    row = _row(whole, f"{_name(recipe)} on {kind}")
    return [replace(row, name=f"{kind} alone", scorer="cf"), row]


def _refuse_twins(rows: Sequence[Row]) -> None:
    for kind, names in (("name", [row.name for row in rows]), ("folder", [row.run + row.scorer for row in rows])):
        if twins := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"two rows have the {kind} {twins[0]!r}, expected one each. Name each recipe once.")


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "recipe"
