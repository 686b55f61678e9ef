"""Stage 1 in plain NumPy, one item at a time."""

import numpy as np


def encode(weights, side, vector):
    """Joint embedding of one item: e from side ``items``, q from side ``texts``."""
    logits = weights[f"{side}.encoder.weight"] @ vector + weights[f"{side}.encoder.bias"]
    return 1 / (1 + np.exp(-logits))


def decode(weights, side, joint):
    return weights[f"{side}.decoder.weight"] @ joint + weights[f"{side}.decoder.bias"]


def mean_square(first, second):
    return sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) / len(first)


def losses(weights, users, positives, negatives, positive_texts, negative_texts):
    """Matching, item reconstruction, text reconstruction and recommendation loss."""
    rows = [*zip(positives, positive_texts, strict=True), *zip(negatives, negative_texts, strict=True)]
    matching, item_reconstruction, text_reconstruction = [], [], []
    for embedding, text in rows:
        e, q = encode(weights, "items", embedding), encode(weights, "texts", text)
        matching.append(mean_square(e, q))
        item_reconstruction.append(mean_square(decode(weights, "items", e), embedding))
        text_reconstruction.append(mean_square(decode(weights, "texts", q), text))
    recommendation = 0.0
    for user, positive, negative in zip(users, positives, negatives, strict=True):
        chosen = user @ decode(weights, "items", encode(weights, "items", positive))
        other = user @ decode(weights, "items", encode(weights, "items", negative))
        recommendation += (-np.log(1 / (1 + np.exp(-chosen))) - np.log(1 - 1 / (1 + np.exp(-other)))) / len(users)
    return np.mean(matching), np.mean(item_reconstruction), np.mean(text_reconstruction), recommendation
