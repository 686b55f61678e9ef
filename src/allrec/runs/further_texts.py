"""Item texts by further encoders beside the run's own: a stage each, and a further similarity each.

Q stays the sentence encoder's: stage 1 and the service read that alone, the content parts read all. Items that are
added later are read by the same further encoders, with the whitening and the layers that the run was trained with.
"""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from allrec.alignment.text_encoder import TextEncoder
from allrec.alignment.text_tuning import tuned_embeddings
from allrec.alignment.whitening import Whitening
from allrec.config import SECOND, TUNED
from allrec.files import load_tensors, save_tensors
from allrec.runs.run_folder import RunFolder

EMBEDDINGS, WHITENING, LAYERS = "embeddings.safetensors", "whitening.safetensors", "layers.safetensors"
"""Files of their stages."""


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
    return {name: encoders[name](run, texts, cache, device) for name in run.recipe().further_encoders}


def save_further(folder: Path, further: dict[str, Float[Tensor, "items further_dim"]]) -> None:
    """Writes items that were added, as ``trained_model.read_further`` reads them."""
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
