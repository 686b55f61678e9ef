"""Ablations: what each part of the method is worth, as ``--set`` changes to a recipe, trained and scored so."""

_SLOW = (
    'alignment.positions="last"',
    "alignment.batch_size=32",
    "alignment.loop.learning_rate=1e-4",
    "alignment.loop.epochs=1",
    "text.max_tokens=32",
)
STAGE_ONE: dict[str, tuple[str, ...]] = {
    "no-matching": ('alignment.network.matching="none"',),
    "no-reconstruction": ("alignment.network.alpha=0", "alignment.network.beta=0"),
    "no-recommendation": ("alignment.network.has_recommendation=false",),
    "tuned-text": ("alignment.tune_text=true", *_SLOW),
    "frozen-text": _SLOW,
    "no-stage-1": ('alignment.network.kind="identity"',),
}
"""Stage 1: each of its losses left out; the text encoder tuned, by the paper's small steps on users' last items, for
one epoch over the beginnings of texts (two cores pay a second or two for a step), beside a frozen one trained in the
same way; and no stage 1 at all, the paper's MLP-LLM.

Source: arXiv:2404.11343, section 5.3.
"""

STAGE_TWO: dict[str, tuple[str, ...]] = {
    "no-user": ("prompt.has_user=false",),
    # The quotes are TOML's: a bare none means that there is no value.
    "no-joint": ('prompt.soft_token="none"',),
    "random-joint": ('soft_tokens.item_source="random"',),
    "llm-alone": ("prompt.has_user=false", 'prompt.soft_token="none"'),
    "every-position": ('soft_tokens.positions="every"',),
}
"""Stage 2: the prompt without the user's soft token, without the items', with fixed random vectors in place of the
items' joint embeddings, without any; and targets at every position. Source: arXiv:2404.11343, section 5.3.
"""
