"""Stage 1: the alignment network, which maps item and text embeddings into one joint space.

    e = enc_I(E), q = enc_T(Q), Ê = dec_I(e), Q̂ = dec_T(q)
    L = L_matching(e, q) + alpha · MSE(Ê, E) + beta · MSE(Q̂, Q) + L_rec(x · Ê)

and without decoders L = L_matching(e, q) + L_rec(W x · e).

Source: arXiv:2404.11343, equations 2 to 7.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional

from allrec.alignment.losses import MATCHING, Temperature, recommendation_loss
from allrec.errors import Config, InputError, nearest
from allrec.training.layers import Dropout
from allrec.training.loop import LoopConfig


class AlignmentConfig(Config):
    """The alignment network and its losses."""

    kind: Literal["network", "identity"] = Field(
        "network",
        description="identity: no stage 1, an item's joint embedding is E_i itself (the paper's MLP-LLM); nothing else "
        "here then counts.",
    )
    joint_dim: int = Field(128, ge=1, description="Width of the joint space, d'.")
    hidden: tuple[int, ...] = Field((), description="Widths of the encoders' layers before the joint one.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of each hidden layer's outputs dropped while training.")
    activation: Literal["sigmoid", "relu", "linear"] = Field(
        "sigmoid", description="Of the joint layer: the public code has a sigmoid, the poster's deeper encoders ReLU."
    )
    has_decoders: bool = Field(True, description="With decoders x · Ê scores, without them a learned W x · e.")
    matching: str = Field("mse", description="What draws e and q together: mse, infonce, or none.")
    alpha: float = Field(0.5, ge=0, description="Weight of the item reconstruction loss.")
    beta: float = Field(
        0.2, ge=0, description="Weight of the text reconstruction loss (the paper: 0.2 on Beauty and Toys, else 0.5)."
    )
    has_recommendation: bool = Field(True, description="Whether the recommendation loss takes part.")

    @field_validator("matching", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        value = "none" if value is None else value  # --set matching=none gives None
        if value not in MATCHING:
            raise InputError(f"unknown matching loss {value!r}: {nearest(str(value), list(MATCHING))}")
        return value

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "AlignmentConfig":
        if self.kind == "network":
            for is_wrong, sentence in self._contradictions():
                if is_wrong:
                    raise InputError(sentence)
        return self

    def _contradictions(self) -> list[tuple[bool, str]]:
        return [
            (any(width < 1 for width in self.hidden), f"hidden is {self.hidden}, expected widths of at least 1"),
            (self.dropout > 0 and not self.hidden, f"dropout is {self.dropout} and there is no hidden layer to drop "
             "from. Give hidden widths, or dropout = 0"),
            (not self.has_decoders and max(self.alpha, self.beta) > 0, f"alpha is {self.alpha} and beta {self.beta}, "
             "and there are no decoders to reconstruct with. Set both to 0, or has_decoders = true"),
            (not self.has_decoders and not self.has_recommendation, "without decoders and without the recommendation "
             "loss nothing learns to score items. Keep one of the two"),
            (self.has_decoders and self.alpha == 0 and not self.has_recommendation, "with alpha = 0 and without the "
             "recommendation loss nothing teaches the items' decoder, which scores items. Keep one of the two"),
            (self.matching == "none" and self.beta == 0, "with matching = none and beta = 0 nothing teaches the "
             "texts' encoder, by which cold items enter. Keep one of the two"),
        ]  # fmt: skip


class AlignmentStageConfig(Config):
    """Stage 1."""

    network: AlignmentConfig = AlignmentConfig()
    positions: Literal["last", "every"] = Field(
        "every", description="Next items to learn from: a user's last, or every one."
    )
    batch_size: int = Field(512, ge=2, description="Next items a step.")
    distinct_items: int = Field(512, ge=2, description="Distinct items a step that InfoNCE contrasts.")
    tune_text: bool = Field(
        False,
        description="Whether the text encoder learns too, as in the paper: every step then reads its texts anew, "
        "seconds a step on a CPU. Take a batch_size of about 32 and a learning rate of 1e-4.",
    )
    loop: LoopConfig = LoopConfig(epochs=10, learning_rate=1e-3)

    @model_validator(mode="after")
    def _refuse_tuning_nothing(self) -> "AlignmentStageConfig":
        if self.tune_text and self.network.kind == "identity":
            raise InputError("tune_text is set, and without a stage 1 (network.kind = identity) nobody reads the texts")
        return self


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "linear": lambda logits: logits,
}


class AlignmentLosses(NamedTuple):
    """The four losses of stage 1, each a mean over the batch; one that is switched off is 0."""

    matching: Float[Tensor, ""]
    item_reconstruction: Float[Tensor, ""]
    text_reconstruction: Float[Tensor, ""]
    recommendation: Float[Tensor, ""]

    def total(self, alpha: float, beta: float) -> Float[Tensor, ""]:
        """Their weighted sum, the paper's equation 7."""
        return self.matching + alpha * self.item_reconstruction + beta * self.text_reconstruction + self.recommendation


class Distinct(NamedTuple):
    """Distinct items, for InfoNCE.

    Attributes:
        embeddings: E.
        texts: Q.
        text_groups: the same number for items of equal text.
    """

    embeddings: Float[Tensor, "items dim"]
    texts: Float[Tensor, "items text_dim"]
    text_groups: Int[Tensor, "items"]


class Autoencoder(nn.Module):
    """Linear layers encode, the joint one with a sigmoid, with ReLU or with none; a linear layer decodes.

    Source: the public code of A-LLMRec, ``two_layer_mlp``; the paper leaves the activation open.
    """

    def __init__(self, dim: int, config: AlignmentConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        widths = (dim, *config.hidden)
        self.hidden = nn.Sequential()
        for width, next_width in pairwise(widths):
            self.hidden.extend([nn.Linear(width, next_width), nn.ReLU(), Dropout(config.dropout)])
        self.encoder = nn.Linear(widths[-1], config.joint_dim)
        self.decoder = nn.Linear(config.joint_dim, dim) if config.has_decoders else None

    def encode(self, inputs: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows joint"]:
        """Joint embeddings; after a sigmoid every coordinate lies between 0 and 1, after ReLU none is below 0."""
        return self.activation(self.encoder(self.hidden(inputs)))

    def decode(self, joint: Float[Tensor, "*rows joint"]) -> Float[Tensor, "*rows dim"]:
        """Reconstructions of what was encoded.

        Raises:
            ValueError: there is no decoder.
        """
        if self.decoder is None:
            raise ValueError("this alignment has no decoders: nothing can be reconstructed")
        return self.decoder(joint)


class Alignment(nn.Module):
    """enc_I and enc_T, with dec_I and dec_T or with W.

    Args:
        item_dim: width of the backbone's item embeddings, d.
        text_dim: width of the text embeddings, d_t.
        config: widths and losses.
    """

    def __init__(self, item_dim: int, text_dim: int, config: AlignmentConfig) -> None:
        super().__init__()
        self.config = config
        self.items = Autoencoder(item_dim, config)
        self.texts = Autoencoder(text_dim, config)
        if not config.has_decoders:
            self.users = nn.Linear(item_dim, config.joint_dim, bias=False)
        if MATCHING[config.matching].is_contrastive:
            self.temperature = Temperature()

    def losses(
        self,
        users: Float[Tensor, "batch dim"],
        positives: Float[Tensor, "batch dim"],
        negatives: Float[Tensor, "batch dim"],
        positive_texts: Float[Tensor, "batch text_dim"],
        negative_texts: Float[Tensor, "batch text_dim"],
        distinct: Distinct | None = None,
    ) -> AlignmentLosses:
        """The four losses for a batch of next items and sampled negatives.

        Args:
            users: user representations x_u before the next item.
            positives: item embeddings E of the next items.
            negatives: item embeddings E of the sampled negatives.
            positive_texts: text embeddings Q of the next items.
            negative_texts: text embeddings Q of the negatives.
            distinct: the items that InfoNCE contrasts; the other matching losses take positives and negatives.

        Returns:
            Matching and reconstruction are means over positives and negatives together (the public code adds the two
            means, which doubles them); recommendation is binary cross-entropy, positives plus negatives.

        Source: arXiv:2404.11343, equations 2 to 6.
        """
        embeddings, texts = torch.cat([positives, negatives]), torch.cat([positive_texts, negative_texts])
        item_joint, text_joint = self.items.encode(embeddings), self.texts.encode(texts)
        nothing = users.new_zeros(())
        item_loss = text_loss = recommendation = nothing
        if self.config.has_decoders:
            scored_users, scored = users, self.items.decode(item_joint)
            item_loss = functional.mse_loss(scored, embeddings)
            # Q is held fixed, or a text encoder that is tuned would learn to be easily reconstructed.
            text_loss = functional.mse_loss(self.texts.decode(text_joint), texts.detach())
        else:
            scored_users, scored = self.users(users), item_joint
        if self.config.has_recommendation:
            recommendation = recommendation_loss(scored_users, *scored.chunk(2))
        return AlignmentLosses(
            matching=self._matching(item_joint, text_joint, distinct),
            item_reconstruction=item_loss,
            text_reconstruction=text_loss,
            recommendation=recommendation,
        )

    def _matching(self, item_joint: Tensor, text_joint: Tensor, distinct: Distinct | None) -> Float[Tensor, ""]:
        matching = MATCHING[self.config.matching]
        if not matching.is_contrastive:
            return matching.loss(item_joint, text_joint)
        if distinct is None:
            raise ValueError(f"{self.config.matching} compares distinct items, and none were given")
        return matching.loss(
            self.items.encode(distinct.embeddings),
            self.texts.encode(distinct.texts),
            distinct.text_groups,
            self.temperature(),
        )

    def joint_items(
        self,
        item_embeddings: Float[Tensor, "items dim"],
        text_embeddings: Float[Tensor, "items text_dim"],
        is_cold: Bool[Tensor, "items"],
    ) -> Float[Tensor, "items joint"]:
        """e_i for warm items, q_i for cold ones: how every item enters from stage 1 on."""
        warm, cold = self.items.encode(item_embeddings), self.texts.encode(text_embeddings)
        return torch.where(is_cold.unsqueeze(-1), cold, warm)

    def scored_items(self, joint: Float[Tensor, "items joint"]) -> Float[Tensor, "items dim"]:
        """What x_u is multiplied with: dec_I(joint), or joint · W, since (W x) · joint = x · (joint · W)."""
        return self.items.decode(joint) if self.config.has_decoders else joint @ self.users.weight


class NoAlignment(nn.Module):
    """No stage 1: an item's joint embedding is its E_i, and texts take no part.

    A cold item has no E_i worth the name, for the backbone met it as a negative at most; it enters by the mean of the
    warm items', which says nothing of it.

    Source: arXiv:2404.11343, section 5.1, MLP-LLM; there cold items enter by their E_i as well.
    """

    def joint_items(
        self,
        item_embeddings: Float[Tensor, "items dim"],
        text_embeddings: Float[Tensor, "items text_dim"],
        is_cold: Bool[Tensor, "items"],
    ) -> Float[Tensor, "items dim"]:
        """E_i for warm items, their mean for cold ones; zeros where none is warm."""
        warm = item_embeddings[~is_cold]
        mean = warm.mean(0) if len(warm) else torch.zeros_like(item_embeddings[0])
        return torch.where(is_cold.unsqueeze(-1), mean, item_embeddings)

    def scored_items(self, joint: Float[Tensor, "items dim"]) -> Float[Tensor, "items dim"]:
        """The same: x_u · E_i."""
        return joint


def new_alignment(item_dim: int, text_dim: int, config: AlignmentConfig) -> Alignment | NoAlignment:
    """The untrained alignment of a recipe."""
    return NoAlignment() if config.kind == "identity" else Alignment(item_dim, text_dim, config)
