"""Stage 1: item embeddings and text embeddings meet in one joint space.

    e = enc_I(E), q = enc_T(Q), Ê = dec_I(e), Q̂ = dec_T(q)
    L = L_matching(e, q) + alpha · MSE(Ê, E) + beta · MSE(Q̂, Q) + L_rec(x · Ê)

Source: arXiv:2404.11343, equations 2 to 7.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from allrec.base import Config


class AlignmentConfig(Config):
    """The alignment network and the weights of its losses."""

    joint_dim: int = Field(128, ge=1, description="Width of the joint space, d'.")
    alpha: float = Field(0.5, ge=0, description="Weight of the item reconstruction loss.")
    beta: float = Field(
        0.2, ge=0, description="Weight of the text reconstruction loss (the paper: 0.2 on Beauty and Toys, else 0.5)."
    )


class AlignmentLosses(NamedTuple):
    """The four losses of stage 1, each a mean over the batch."""

    matching: Float[Tensor, ""]
    item_reconstruction: Float[Tensor, ""]
    text_reconstruction: Float[Tensor, ""]
    recommendation: Float[Tensor, ""]

    def total(self, alpha: float, beta: float) -> Float[Tensor, ""]:
        """Their weighted sum, the paper's equation 7."""
        return self.matching + alpha * self.item_reconstruction + beta * self.text_reconstruction + self.recommendation


class Autoencoder(nn.Module):
    """One hidden layer, the joint embedding: a linear layer and a sigmoid encode, a linear layer decodes.

    Source: the public code of A-LLMRec, ``two_layer_mlp``; the paper leaves the activation open.
    """

    def __init__(self, dim: int, joint_dim: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(dim, joint_dim)
        self.decoder = nn.Linear(joint_dim, dim)

    def encode(self, inputs: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows joint"]:
        """Joint embeddings, every coordinate between 0 and 1."""
        return torch.sigmoid(self.encoder(inputs))

    def decode(self, joint: Float[Tensor, "*rows joint"]) -> Float[Tensor, "*rows dim"]:
        """Reconstructions of what was encoded."""
        return self.decoder(joint)


class Alignment(nn.Module):
    """enc_I with dec_I, and enc_T with dec_T.

    Args:
        item_dim: width of the backbone's item embeddings, d.
        text_dim: width of the text embeddings, d_t.
        config: widths and loss weights.
    """

    def __init__(self, item_dim: int, text_dim: int, config: AlignmentConfig) -> None:
        super().__init__()
        self.config = config
        self.items = Autoencoder(item_dim, config.joint_dim)
        self.texts = Autoencoder(text_dim, config.joint_dim)

    def losses(
        self,
        users: Float[Tensor, "batch dim"],
        positives: Float[Tensor, "batch dim"],
        negatives: Float[Tensor, "batch dim"],
        positive_texts: Float[Tensor, "batch text_dim"],
        negative_texts: Float[Tensor, "batch text_dim"],
    ) -> AlignmentLosses:
        """The four losses for a batch of next items and sampled negatives.

        Args:
            users: user representations x_u before the next item.
            positives: item embeddings E of the next items.
            negatives: item embeddings E of the sampled negatives.
            positive_texts: text embeddings Q of the next items.
            negative_texts: text embeddings Q of the negatives.

        Returns:
            Matching and reconstruction are means over positives and negatives together (the public code adds the two
            means, which doubles them); recommendation is binary cross-entropy of x · Ê, positives plus negatives.

        Source: arXiv:2404.11343, equations 2 to 6.
        """
        embeddings, texts = torch.cat([positives, negatives]), torch.cat([positive_texts, negative_texts])
        item_joint, text_joint = self.items.encode(embeddings), self.texts.encode(texts)
        reconstructed = self.items.decode(item_joint)
        positive_hat, negative_hat = reconstructed.chunk(2)
        return AlignmentLosses(
            matching=matching_loss(item_joint, text_joint),
            item_reconstruction=functional.mse_loss(reconstructed, embeddings),
            text_reconstruction=functional.mse_loss(self.texts.decode(text_joint), texts),
            recommendation=recommendation_loss(users, positive_hat, negative_hat),
        )

    def joint_items(
        self,
        item_embeddings: Float[Tensor, "items dim"],
        text_embeddings: Float[Tensor, "items text_dim"],
        is_cold: Tensor,
    ) -> Float[Tensor, "items joint"]:
        """e_i for warm items, q_i for cold ones: how every item enters from stage 1 on."""
        warm, cold = self.items.encode(item_embeddings), self.texts.encode(text_embeddings)
        return torch.where(is_cold.unsqueeze(-1), cold, warm)


def matching_loss(
    item_joint: Float[Tensor, "rows joint"], text_joint: Float[Tensor, "rows joint"]
) -> Float[Tensor, ""]:
    """Mean squared distance between an item's two joint embeddings, over rows and coordinates (equation 2)."""
    return functional.mse_loss(item_joint, text_joint)


def recommendation_loss(
    users: Float[Tensor, "batch dim"], positives: Float[Tensor, "batch dim"], negatives: Float[Tensor, "batch dim"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of x · Ê: mean over positives plus mean over negatives (equation 5).

    The score is the dot product, as the backbone was trained; the public code averages over coordinates instead.
    """
    positive_logits = (users * positives).sum(-1)
    negative_logits = (users * negatives).sum(-1)
    return functional.softplus(-positive_logits).mean() + functional.softplus(negative_logits).mean()
