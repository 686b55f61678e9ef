"""A read-out head on the language model: a learned vector behind the prompt, whose last hidden state ranks every item.

    h = LLM(prompt, vector) at the vector's place       z = f_U(h)       v_i = f_I(e_i or q_i)       s(u, i) = z · v_i
    L = -log softmax(s)_target + a · MSE(z/|z|, t/|t|) + b · (U(z) + U(t))
    t = f_CF(x_u)                                       U(z) = mean of exp(-2 |z/|z| - z'/|z'||²) over pairs

Source: LLM-SRec, arXiv:2502.13909, equations 1 to 4; docs/fidelity.md lists how we differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from allrec.errors import Config
from allrec.llm.attention import additive_mask
from allrec.llm.prompt import Prompts
from allrec.llm.soft_tokens import Projection, SoftTokens, embed_prompts

if TYPE_CHECKING:
    from allrec.llm.language_model import LanguageModel


class ReadOutConfig(Config):
    """The head and the weights of its losses."""

    reads: Literal["llm", "user"] = Field(
        "llm",
        description="What f_U reads: the model's hidden state behind the prompt, or x_u itself, the control that says "
        "what the language model adds.",
    )
    dim: int = Field(128, ge=1, description="Width in which users and items meet (LLM-SRec: 128).")
    distillation: float = Field(1.0, ge=0, description="Weight of the distillation of x_u (LLM-SRec: 1).")
    uniformity: float = Field(1.0, ge=0, description="Weight of the uniformity loss (LLM-SRec: 1).")


class ReadOutLosses(NamedTuple):
    """The three losses of the head, each a mean over the batch; uniformity is the sum over both sides."""

    retrieval: Float[Tensor, ""]
    distillation: Float[Tensor, ""]
    uniformity: Float[Tensor, ""]

    def total(self, distillation: float, uniformity: float) -> Float[Tensor, ""]:
        """Their weighted sum, LLM-SRec's equation 4."""
        return self.retrieval + distillation * self.distillation + uniformity * self.uniformity


class ReadOut(nn.Module):
    """What the head learns. The language model is no part of it.

    Args:
        read_dim: width of what f_U reads: the model's last hidden states, or user representations.
        llm_dim: width of its input embeddings.
        joint_dim: width of the joint space.
        user_dim: width of user representations.
        config: widths.
        scale: root mean square that the vector begins with; the language model's own embeddings have it.
        soft_tokens: F_U and F_I of its own, where they are trained along.

    Attributes:
        vector: the learned vector behind the prompt.
        reads: which of the two it is; see ``ReadOutConfig``.
        users: f_U, from the hidden state there, or from x_u.
        items: f_I, from a joint embedding.
        teacher: f_CF, from a user representation; training alone asks for it.
    """

    def __init__(
        self,
        read_dim: int,
        llm_dim: int,
        joint_dim: int,
        user_dim: int,
        config: ReadOutConfig,
        scale: float,
        soft_tokens: SoftTokens | None = None,
    ) -> None:
        super().__init__()
        self.reads = config.reads
        self.vector = nn.Parameter(torch.randn(llm_dim) * scale, requires_grad=config.reads == "llm")
        # Scores then begin at about 1, whatever the width, and a softmax over the catalogue near its logarithm.
        self.users = Projection(read_dim, config.dim, nn.LeakyReLU(), config.dim**-0.5)
        self.items = Projection(joint_dim, config.dim, nn.GELU())
        self.teacher = Projection(user_dim, config.dim, nn.GELU())
        self.soft_tokens = soft_tokens


def distillation_loss(students: Float[Tensor, "batch dim"], teachers: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Mean square between unit vectors, over rows and coordinates.

    Source: arXiv:2502.13909, equation 2; its public code normalises both.
    """
    return functional.mse_loss(functional.normalize(students, dim=1), functional.normalize(teachers, dim=1))


def uniformity_loss(vectors: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Mean of exp(-2 |a - b|²) over all pairs of unit vectors: 1 where all are equal, 0 for a batch of one.

    Source: arXiv:2502.13909, equation 3; Wang and Isola (arXiv:2005.10242) take the logarithm of it.
    """
    if len(vectors) < 2:
        return vectors.sum() * 0
    return torch.pdist(functional.normalize(vectors, dim=1)).square().mul(-2).exp().mean()


def read_out(
    llm: LanguageModel, prompts: Prompts, soft: Float[Tensor, "soft dim"], vector: Float[Tensor, "dim"]
) -> Float[Tensor, "batch hidden_dim"]:
    """The last hidden state at a vector right behind each prompt.

    Nothing before a place depends on it, so the prompts are read first, and without a gradient unless the soft tokens
    ask for one; the vectors follow in a second pass of one place a row.

    Args:
        llm: the frozen language model.
        prompts: a prompt a row.
        soft: soft tokens in the order of ``prompts.soft_items``.
        vector: the learned vector.
    """
    lengths = torch.from_numpy(prompts.tokens.lengths).to(llm.device)
    rows = torch.arange(len(lengths), device=llm.device)
    embeddings = embed_prompts(llm, prompts, soft)
    if not llm.can_pack or embeddings.shape[1] >= llm.window:
        is_last = torch.arange(embeddings.shape[1] + 1, device=llm.device) == lengths[:, None]
        longer = functional.pad(embeddings, (0, 0, 0, 1))
        longer = torch.where(is_last[:, :, None], vector.to(longer), longer)
        return llm.hidden(longer)[rows, lengths].to(vector)
    with torch.set_grad_enabled(torch.is_grad_enabled() and soft.requires_grad):
        cache = llm.read(embeddings)
    is_seen = torch.arange(embeddings.shape[1] + 1, device=llm.device) < lengths[:, None]
    is_seen[:, -1] = True
    mask = additive_mask(is_seen[:, None, None], llm.dtype)
    behind = vector.to(embeddings).expand(len(lengths), 1, -1)
    return llm.hidden(behind, mask, lengths[:, None], cache)[:, 0].to(vector)
