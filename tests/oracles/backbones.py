"""NCF, NextItNet and GRU4Rec in plain NumPy, one user at a time and one place after the other.

Each takes the weights by name, the configuration and a history (item ids, oldest first), and gives states
[length, dim].
"""

import numpy as np


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def ncf(weights, config, history):
    product_dim = config.dim // 2
    states = []
    for length in range(1, len(history) + 1):
        pooled = sum(weights["history_table"][item] for item in history[:length]) / length**config.pooling_power
        product, x = pooled[:product_dim] * weights["product_weight"], pooled[product_dim:]
        num_layers = len(config.hidden)
        for layer in range(num_layers):
            x = weights[f"network.{3 * layer}.weight"] @ x + weights[f"network.{3 * layer}.bias"]
            x = relu(x) if layer < num_layers - 1 else x
        states.append(np.concatenate([product, x]))
    return np.stack(states)


def layer_norm(x, scale, shift):
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5) * scale + shift


def causal_convolution(x, kernel, bias, dilation):
    """Place t sees t, t - dilation, ..., and nothing where there is none; the kernel's last column is for t itself."""
    outputs = []
    for place in range(len(x)):
        output = bias.copy()
        for back in range(kernel.shape[2]):
            if place - back * dilation >= 0:
                output += kernel[:, :, kernel.shape[2] - 1 - back] @ x[place - back * dilation]
        outputs.append(output)
    return np.stack(outputs)


def nextitnet(weights, config, history):
    x = weights["item_table"][history] * np.sqrt(config.dim)
    for block, first in enumerate(config.dilations):
        inner = x
        for half, dilation in enumerate((first, 2 * first)):
            name = f"blocks.{block}.convolutions.{half}"
            inner = causal_convolution(inner, weights[f"{name}.weight"], weights[f"{name}.bias"], dilation)
            name = f"blocks.{block}.norms.{half}"
            inner = np.stack(
                [relu(layer_norm(row, weights[f"{name}.weight"], weights[f"{name}.bias"])) for row in inner]
            )
        x = x + inner
    return x @ weights["output.weight"].T + weights["output.bias"]


def gru4rec(weights, config, history):
    x = weights["item_table"][history] * np.sqrt(config.dim)
    for layer in range(config.layers):
        hidden, states = np.zeros(config.hidden), []
        for item in x:
            of_item = weights[f"recurrent.weight_ih_l{layer}"] @ item + weights[f"recurrent.bias_ih_l{layer}"]
            of_state = weights[f"recurrent.weight_hh_l{layer}"] @ hidden + weights[f"recurrent.bias_hh_l{layer}"]
            reset, update, new = zip(np.split(of_item, 3), np.split(of_state, 3), strict=True)
            candidate = np.tanh(new[0] + sigmoid(reset[0] + reset[1]) * new[1])
            share = sigmoid(update[0] + update[1])
            hidden = (1 - share) * candidate + share * hidden
            states.append(hidden)
        x = np.stack(states)
    return x @ weights["output.weight"].T + weights["output.bias"]
