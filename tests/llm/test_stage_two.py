"""What F_I reads: joint embeddings, or random vectors that belong to an item for good."""

import pytest
import torch

from allrec.errors import InputError
from allrec.llm.soft_token_training import SoftTokensStageConfig
from allrec.llm.soft_tokens import item_inputs_of

JOINT = torch.arange(12.0).reshape(4, 3)


def test_joint_embeddings_are_read_as_they_are():
    assert item_inputs_of(JOINT, "joint", 0) is JOINT


def test_random_vectors_are_the_seeds_and_not_the_embeddings():
    drawn = item_inputs_of(JOINT, "random", 0)
    assert (drawn.shape, drawn.dtype) == (JOINT.shape, JOINT.dtype)
    assert torch.equal(drawn, item_inputs_of(JOINT + 1, "random", 0))
    assert not torch.equal(drawn, item_inputs_of(JOINT, "random", 1))


def test_an_item_keeps_its_random_vector_when_others_come():
    more = torch.cat([JOINT, JOINT])
    assert torch.equal(item_inputs_of(more, "random", 0)[:4], item_inputs_of(JOINT, "random", 0))


def test_another_source_is_refused():
    with pytest.raises(InputError, match="item_source"):
        SoftTokensStageConfig(item_source="text")
