"""Item texts by further encoders beside the run's own: a stage each, and a further similarity each.

Q stays the sentence encoder's: stage 1 and the service read that alone, the content parts read all. Items that are
added later are read by the same further encoders, with the whitening and the layers that the run was trained with.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from allrec.alignment.text_encoder import TextEncoder
from allrec.alignment.text_tuning import tuned_embeddings
from allrec.alignment.whitening import Whitening
from allrec.config import Recipe
from allrec.files import load_tensors, save_tensors
from allrec.runs.run_folder import RunFolder

SECOND, TUNED = "second_text", "text_tuning"
"""Stages that embed texts further, by which their similarities are named, too."""
EMBEDDINGS, WHITENING, LAYERS = "embeddings.safetensors", "whitening.safetensors", "layers.safetensors"


def further_encoders(recipe: Recipe) -> list[str]:
    """The further encoders that a recipe has."""
    wanted = {SECOND: recipe.second_text.enabled, TUNED: recipe.text_tuning.enabled}
    return [name for name, is_wanted in wanted.items() if recipe.fusion.enabled and is_wanted]


def encode_further(
    run: RunFolder, texts: Sequence[str | None], cache: Path, device: str = "cpu"
) -> dict[str, Float[Tensor, "texts further_dim"]]:
    """Texts that the run was not trained on, by each of its further encoders.

    Args:
        run: a trained run.
        texts: an item's text each.
        cache: folder of cached text embeddings.
        device: where the encoders run.
    """
    encoders = {SECOND: _by_second, TUNED: _by_tuned}
    return {name: encoders[name](run, texts, cache, device) for name in further_encoders(run.recipe())}


def read_further(run: RunFolder) -> dict[str, Float[Tensor, "items further_dim"]]:
    """The run's items by each of its further encoders, those that were added last."""
    return {
        name: torch.cat(
            [
                load_tensors(run.verified_folder(name) / EMBEDDINGS)["embeddings"],
                *(load_tensors(folder / f"{name}.safetensors")["embeddings"] for folder in run.added()),
            ]
        )
        for name in further_encoders(run.recipe())
    }


def beside(
    text_embeddings: Float[Tensor, "items text_dim"], further: Mapping[str, Float[Tensor, "items further_dim"]]
) -> Float[Tensor, "items all_dim"]:
    """Q and behind it the further embeddings, all as unit vectors of equal weight; Q itself where there are none."""
    if not further:
        return text_embeddings
    return torch.cat([functional.normalize(one, dim=1) for one in (text_embeddings, *further.values())], dim=1)


def save_further(folder: Path, further: dict[str, Float[Tensor, "items further_dim"]]) -> None:
    """Writes items that were added, as ``read_further`` reads them."""
    for name, embeddings in further.items():
        save_tensors(folder / f"{name}.safetensors", {"embeddings": embeddings})


def _by_second(run: RunFolder, texts: Sequence[str | None], cache: Path, device: str) -> Tensor:
    from allrec.llm.text_states import pooled_states

    whitening = Whitening(**load_tensors(run.verified_folder(SECOND) / WHITENING))
    return whitening(pooled_states(texts, run.recipe().second_text, cache, device=device))


def _by_tuned(run: RunFolder, texts: Sequence[str | None], cache: Path, device: str) -> Tensor:
    recipe = run.recipe()
    config, encoder = recipe.text_tuning, TextEncoder(recipe.text, device)
    layers = encoder.last_layers(config.layers)
    layers.load_weights(load_tensors(run.verified_folder(TUNED) / LAYERS))
    return tuned_embeddings(layers.eval(), encoder.states_before(config.layers, texts, config.max_tokens))
