"""SASRec in plain NumPy, one user at a time, with the padding of the public code laid out place by place."""

import numpy as np


def norm(x, weights, name):
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-8)
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def attention(asking, asked, weights, name, heads):
    query = linear(asking, weights, f"{name}.query")
    key = linear(asked, weights, f"{name}.key")
    value = linear(asked, weights, f"{name}.value")
    width = query.shape[1] // heads
    output = np.zeros_like(query)
    for head in range(heads):
        columns = slice(head * width, (head + 1) * width)
        for place in range(len(query)):
            logits = key[: place + 1, columns] @ query[place, columns] / np.sqrt(width)
            shares = np.exp(logits - logits.max())
            output[place, columns] = shares / shares.sum() @ value[: place + 1, columns]
    return linear(output, weights, f"{name}.output")


def network(x, weights, name):
    return linear(np.maximum(linear(x, weights, f"{name}.0"), 0), weights, f"{name}.3")


def block(x, weights, name, config):
    first, second = f"{name}.attention_norm", f"{name}.network_norm"
    if config.norm == "query":
        query = norm(x, weights, first)
        x = norm(query + attention(query, x, weights, f"{name}.attention", config.heads), weights, second)
        return x + network(x, weights, f"{name}.network")
    if config.norm == "pre":
        normed = norm(x, weights, first)
        x = x + attention(normed, normed, weights, f"{name}.attention", config.heads)
        return x + network(norm(x, weights, second), weights, f"{name}.network")
    x = norm(x + attention(x, x, weights, f"{name}.attention", config.heads), weights, first)
    return norm(x + network(x, weights, f"{name}.network"), weights, second)


def states(weights, config, history):
    """States [length, dim] of one history, a list of item ids of at most ``max_length``, oldest first."""
    num_padding = config.max_length - len(history)
    items = weights["item_table"][history] * np.sqrt(config.dim)
    x = items + weights["position_table"][num_padding:]
    if config.padding != "unseen":
        x = np.concatenate([np.zeros((num_padding, config.dim)), x])
    is_padding = np.arange(len(x)) < len(x) - len(history)
    for index in range(config.blocks):
        x = block(x, weights, f"blocks.{index}", config)
        if config.padding == "zeroed":
            x[is_padding] = 0
    return norm(x, weights, "last_norm")[~is_padding]
