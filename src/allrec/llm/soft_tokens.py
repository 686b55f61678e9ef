"""F_U and F_I: a user representation and a joint embedding become soft tokens, the size of the model's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from pydantic import Field
from torch import Tensor, nn

from allrec import seeds
from allrec.errors import Config
from allrec.llm.prompt import USER, Packed, Prompts

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel


class SoftTokensConfig(Config):
    """How soft tokens are made."""

    is_standardized: bool = Field(
        True,
        description="Inputs are centred and scaled by the catalogue's (users') mean and deviation, then constants.",
    )
    is_scaled: bool = Field(True, description="Soft tokens begin at about the size of the model's token embeddings.")


class Projection(nn.Module):
    """Linear, layer norm, activation, linear.

    Args:
        in_dim: width of what comes in.
        llm_dim: width of the language model's input embeddings.
        activation: between the layers; the public code has LeakyReLU for users and GELU for items.
        scale: about the root mean square that the output begins with: 0.6 to 0.8 of it, by the activation.

    Source: arXiv:2404.11343, section 4.3; weights begin Xavier-normal as in the public code, the last layer then times
    ``scale``, since a token a hundred times larger than the model's own drowns what the layers add to it.
    """

    def __init__(self, in_dim: int, llm_dim: int, activation: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.inner = nn.Linear(in_dim, llm_dim)
        self.norm = nn.LayerNorm(llm_dim)
        self.activation = activation
        self.outer = nn.Linear(llm_dim, llm_dim)
        self.register_buffer("mean", torch.zeros(in_dim))
        self.register_buffer("deviation", torch.ones(in_dim))
        nn.init.xavier_normal_(self.inner.weight)
        nn.init.xavier_normal_(self.outer.weight)
        with torch.no_grad():
            self.outer.weight.mul_(scale)
            self.outer.bias.mul_(scale)

    def standardize(self, inputs: Float[Tensor, "rows in_dim"]) -> None:
        """Takes centre and scale from ``inputs``; a feature that never varies keeps scale 1."""
        deviation = inputs.std(dim=0, correction=0)
        self.mean = inputs.mean(dim=0)
        # Not deviation > 0: rounding gives a column of 0.1 a deviation of 1e-8.
        is_varied = inputs.amax(dim=0) > inputs.amin(dim=0)
        self.deviation = torch.where(is_varied, deviation, torch.ones_like(deviation))

    @torch.no_grad()
    def resize(self, inputs: Float[Tensor, "rows in_dim"], size: float) -> None:
        """Scales the output so that its root mean square over ``inputs`` is ``size``."""
        factor = size / self(inputs).square().mean().sqrt()
        self.outer.weight.mul_(factor)
        self.outer.bias.mul_(factor)

    def forward(self, inputs: Float[Tensor, "*rows in_dim"]) -> Float[Tensor, "*rows llm_dim"]:
        """Soft tokens, one a row."""
        standard = (inputs - self.mean) / self.deviation
        return self.outer(self.activation(self.norm(self.inner(standard))))


class SoftTokens(nn.Module):
    """F_U and F_I side by side: all that stage 2 learns."""

    def __init__(self, user_dim: int, joint_dim: int, llm_dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.user = Projection(user_dim, llm_dim, nn.LeakyReLU(), scale)
        self.item = Projection(joint_dim, llm_dim, nn.GELU(), scale)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "SoftTokens":
        """With weights that were stored, whose shapes give the widths."""
        (llm_dim, user_dim), joint_dim = tensors["user.inner.weight"].shape, tensors["item.inner.weight"].shape[1]
        soft_tokens = cls(user_dim, joint_dim, llm_dim)
        soft_tokens.load_state_dict(dict(tensors))
        return soft_tokens


def insert(
    embeddings: Float[Tensor, "*places dim"], is_marker: Bool[Tensor, "*places"], soft: Float[Tensor, "markers dim"]
) -> Float[Tensor, "*places dim"]:
    """Puts soft tokens, in their order, in the marked places; every other place is as it was.

    Raises:
        ValueError: there are not as many soft tokens as marked places, or they are not as wide as the embeddings.
    """
    num_markers = int(is_marker.sum())
    if num_markers != len(soft):
        raise ValueError(f"prompt has {num_markers} places for {len(soft)} soft tokens; was it truncated?")
    if soft.shape[-1] != embeddings.shape[-1]:
        raise ValueError(f"soft tokens are {soft.shape[-1]} wide, the model's embeddings {embeddings.shape[-1]}")
    return embeddings.masked_scatter(is_marker.unsqueeze(-1), soft.to(embeddings.dtype))


def item_inputs_of(
    joint_items: Float[Tensor, "items joint"], source: Literal["joint", "random"], seed: int
) -> Float[Tensor, "items joint"]:
    """What F_I reads of every item, in training and in scoring alike.

    Args:
        joint_items: e_i, or q_i where cold.
        source: "joint" takes them as they are; "random" takes standard normal vectors of the same width, which belong
            to an item for good: more items at the end change none of them.
        seed: of the random vectors.

    Source: arXiv:2404.11343, section 5.3, the ablation of stage 2.
    """
    if source == "joint":
        return joint_items
    drawn = seeds.rng(seed, "soft tokens", "random items").standard_normal(tuple(joint_items.shape))
    return torch.from_numpy(drawn).to(joint_items)


def project(
    soft_tokens: SoftTokens,
    users: Float[Tensor, "rows dim"],
    joint_items: Float[Tensor, "items joint"],
    soft_items: Int[ndarray, "soft"],
) -> Float[Tensor, "soft llm_dim"]:
    """The soft tokens of a batch of prompts, in the order of their places; an item is projected once.

    Args:
        soft_tokens: F_U and F_I.
        users: x_u of each prompt's user.
        joint_items: e_i, or q_i where cold, of every item.
        soft_items: whose soft token each place takes; ``USER`` means the users in their order.
    """
    is_user = soft_items == USER
    unique, places = np.unique(soft_items[~is_user], return_inverse=True)
    num_users = int(is_user.sum())
    projected = torch.cat(
        [soft_tokens.user(users[:num_users]), soft_tokens.item(joint_items[torch.from_numpy(unique)])]
    )
    order = np.empty(len(soft_items), np.int64)
    order[is_user], order[~is_user] = np.arange(num_users), num_users + places
    return projected[torch.from_numpy(order)]


def embed_prompts(
    llm: LanguageModel, prompts: Prompts, soft: Float[Tensor, "soft dim"]
) -> Float[Tensor, "batch length dim"]:
    """Embeddings of prompts with their soft tokens in place, padded on the right."""
    embeddings = llm.embed(torch.from_numpy(prompts.tokens.padded()))
    return insert(embeddings, soft_places(llm, prompts), soft.to(llm.device))


def soft_places(llm: LanguageModel, prompts: Prompts) -> Bool[Tensor, "batch length"]:
    """Where ``embed_prompts`` puts soft tokens."""
    return torch.from_numpy(Packed(prompts.is_soft, prompts.tokens.offsets).padded()).to(llm.device)
