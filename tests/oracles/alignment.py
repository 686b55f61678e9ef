"""Stage 1 in plain NumPy, one item at a time."""

import numpy as np


def encode(weights, side, vector, activation="sigmoid"):
    """Joint embedding of one item: e from side ``items``, q from side ``texts``; layers of hidden width come first."""
    layer = 0
    while f"{side}.hidden.{layer}.weight" in weights:
        vector = np.maximum(
            weights[f"{side}.hidden.{layer}.weight"] @ vector + weights[f"{side}.hidden.{layer}.bias"], 0
        )
        layer += 3  # a linear layer, its activation, its dropout
    logits = weights[f"{side}.encoder.weight"] @ vector + weights[f"{side}.encoder.bias"]
    return {"sigmoid": 1 / (1 + np.exp(-logits)), "relu": np.maximum(logits, 0), "linear": logits}[activation]


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


def cosine(first, second):
    return first @ second / np.sqrt((first @ first) * (second @ second))


def picked(scores, own):
    """Cross-entropy, in nats, of picking ``own`` among the keys of ``scores``."""
    return -scores[own] + np.log(sum(np.exp(score) for score in scores.values()))


def infonce(items, texts, groups, scale):
    """Each item picks its text among those that are not equal to it, and each text its item."""
    total = 0.0
    for own in range(len(items)):
        others = [i for i in range(len(items)) if i == own or groups[i] != groups[own]]
        total += picked({i: scale * cosine(items[own], texts[i]) for i in others}, own)
        total += picked({i: scale * cosine(texts[own], items[i]) for i in others}, own)
    return total / (2 * len(items))


def projected_recommendation(weights, users, positives, negatives, activation="sigmoid"):
    """Recommendation loss without decoders: W·x against e."""
    total = 0.0
    for user, positive, negative in zip(users, positives, negatives, strict=True):
        projected = weights["users.weight"] @ user
        chosen = projected @ encode(weights, "items", positive, activation)
        other = projected @ encode(weights, "items", negative, activation)
        total += -np.log(1 / (1 + np.exp(-chosen))) - np.log(1 - 1 / (1 + np.exp(-other)))
    return total / len(users)
