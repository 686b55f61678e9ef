"""What each stage of a run depends on, so that runs of one comparison train what they share once."""

from collections.abc import Iterable
from typing import Any

from allrec.run_folder import RunFolder

SHARED = ("catalogue", "backbone", "text", "alignment", "content", "ensemble", "language_model", "readout")
"""Stages that another run may have done already; fusion and evaluation are their run's own."""
NEVER = {"name", "evaluation"}
RETRIEVAL = {"search", "depth", "fitted_candidates"}
"""Keys of the evidence that nothing is trained by."""
AFTER_ALIGNMENT = {"llm", "prompt", "soft_tokens", "readout", "cold_below", "fusion"}


def stage_inputs(run: RunFolder, stage: str) -> dict[str, Any]:
    """All that decides what a stage of a run comes to: equal inputs, equal bytes.

    What nobody has told apart here counts as an input, so a new key of the recipe costs time and never truth.
    """
    recipe = run.recipe().model_dump(mode="json", exclude=NEVER)
    inputs = {"dataset": run.manifest["dataset"]["sha256"]}
    if stage == "catalogue":
        return inputs
    if stage == "text":
        return inputs | {"text": recipe["text"]}
    if stage == "backbone":
        return inputs | {"backbone": recipe["backbone"], "seed": recipe["seed"]}
    if stage == "alignment":
        return inputs | {key: value for key, value in recipe.items() if key not in AFTER_ALIGNMENT}
    if stage in ("content", "ensemble"):
        content = {key: recipe[key] for key in ("text", "alignment", "backbone", "seed")}
        evidence = {key: value for key, value in recipe["fusion"]["evidence"].items() if key not in RETRIEVAL}
        evidence["ensemble"] = evidence["ensemble"] if stage == "ensemble" else None
        return inputs | content | {"evidence": evidence}
    chosen = {"fingerprint": run.manifest["llm"], "chosen": recipe["llm"]["chosen"]}
    readout = recipe["readout"] if stage == "readout" else None
    return inputs | recipe | chosen | {"llm": None, "fusion": None, "readout": readout}


def adopt_stages(run: RunFolder, others: Iterable[RunFolder]) -> list[str]:
    """Takes over every stage that ``run`` lacks and another run has done from the same inputs, and names them."""
    others = [other for other in others if other.path != run.path]
    adopted = []
    for stage in SHARED:
        if run.is_done(stage):
            continue
        inputs = stage_inputs(run, stage)
        donor = next((other for other in others if other.is_done(stage) and stage_inputs(other, stage) == inputs), None)
        if donor is not None:
            run.adopt(stage, donor)
            adopted.append(stage)
    return adopted
