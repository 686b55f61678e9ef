"""Text embeddings on disk: a text is encoded once, a kill loses a chunk at most, and nothing else shows."""

import pytest
import torch
from tests.encoders import save_encoder

from allrec.alignment import text_cache
from allrec.alignment.text_cache import text_embeddings
from allrec.alignment.text_encoder import TextEncoder, TextEncoderConfig
from allrec.errors import InputError

WORDS = ["hand", "cream", "rose", "lotion", "velvet", "soap", "silver", "comb", "brush", "mirror", "oil", "serum"]
TEXTS = [" ".join(WORDS[place % 5 : place + 1]) for place in range(len(WORDS))]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return TextEncoderConfig(name=str(save_encoder(tmp_path_factory.mktemp("encoder") / "model")))


@pytest.fixture
def encoded(monkeypatch):
    """Every text that an encoder reads, chunks of four texts."""
    read, encode = [], TextEncoder.encode
    monkeypatch.setattr(text_cache, "CHUNK", 4)
    monkeypatch.setattr(TextEncoder, "encode", lambda self, texts: read.extend(texts) or encode(self, texts))
    return read


def files_of(cache):
    return {path.name: path.read_bytes() for path in sorted(cache.rglob("*")) if path.is_file()}


def test_rows_are_in_the_order_of_the_texts(tmp_path, config):
    embeddings = text_embeddings(TEXTS, config, tmp_path)
    one_by_one = torch.cat([TextEncoder(config).encode([text]) for text in TEXTS])
    assert embeddings.dtype == torch.float32
    assert torch.allclose(embeddings, one_by_one, atol=1e-6)


def test_no_text_gives_zeros(tmp_path, config):
    embeddings = text_embeddings(["rose", None, "", "oil"], config, tmp_path)
    assert torch.equal(embeddings[1:3], torch.zeros(2, 16))
    assert embeddings[[0, 3]].abs().sum(1).min() > 0


def test_equal_texts_are_encoded_once(tmp_path, config, encoded):
    embeddings = text_embeddings(["rose", "oil", "rose", None, "oil"], config, tmp_path)
    assert sorted(encoded) == ["oil", "rose"]
    assert torch.equal(embeddings[0], embeddings[2])
    assert torch.equal(embeddings[1], embeddings[4])
    assert not torch.equal(embeddings[0], embeddings[1])


def test_what_is_cached_is_not_encoded_again(tmp_path, config, encoded):
    first = text_embeddings(TEXTS, config, tmp_path)
    encoded.clear()
    other_order = [3, 0, 11, 3]
    again = text_embeddings([TEXTS[place] for place in other_order] + ["new"], config, tmp_path)
    assert encoded == ["new"]
    assert torch.equal(again[:4], first[other_order])


def test_a_full_cache_loads_no_encoder(tmp_path, config, monkeypatch):
    first = text_embeddings(TEXTS, config, tmp_path)
    monkeypatch.setattr(text_cache, "TextEncoder", lambda *_: pytest.fail("loaded the encoder"))
    assert torch.equal(text_embeddings(TEXTS, config, tmp_path), first)


def test_encoders_do_not_share_a_cache(tmp_path, config, encoded):
    text_embeddings(TEXTS, config, tmp_path)
    encoded.clear()
    text_embeddings(TEXTS, config.model_copy(update={"max_tokens": 8}), tmp_path)
    assert sorted(encoded) == sorted(TEXTS)


class Killed(Exception):
    pass


@pytest.mark.parametrize("chunks", [1, 2])
def test_killed_between_chunks_it_goes_on_and_ends_in_the_same_bytes(tmp_path, config, encoded, chunks):
    def kill(share, values):
        assert share == values["texts"] / len(TEXTS)
        if values["texts"] == 4 * chunks:
            raise Killed

    whole = text_embeddings(TEXTS, config, tmp_path / "whole")
    encoded.clear()
    with pytest.raises(Killed):
        text_embeddings(TEXTS, config, tmp_path / "killed", on_progress=kill)
    assert len(encoded) == 4 * chunks
    encoded.clear()
    assert torch.equal(text_embeddings(TEXTS, config, tmp_path / "killed"), whole)
    assert len(encoded) == len(TEXTS) - 4 * chunks
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def test_progress_is_told_after_each_chunk(tmp_path, config, encoded):
    told = []
    text_embeddings(TEXTS, config, tmp_path, on_progress=lambda share, values: told.append((share, values["texts"])))
    assert told == [(4 / 12, 4), (8 / 12, 8), (1, 12)]


@pytest.mark.parametrize("damage", ["torn", "emptied", "foreign"])
def test_a_damaged_chunk_is_encoded_again(tmp_path, config, encoded, damage):
    whole = text_embeddings(TEXTS, config, tmp_path)
    files = files_of(tmp_path)
    path = sorted(tmp_path.rglob("*.safetensors"))[1]
    if damage == "foreign":
        text_cache.save_tensors(path, {"weights": torch.zeros(3)})
    else:
        path.write_bytes(path.read_bytes()[: 200 if damage == "torn" else 0])
    encoded.clear()
    assert torch.equal(text_embeddings(TEXTS, config, tmp_path), whole)
    assert len(encoded) == 4
    assert files_of(tmp_path) == files


def test_a_catalogue_without_any_text_is_refused(tmp_path, config):
    with pytest.raises(InputError, match="no item has a text, expected titles or descriptions"):
        text_embeddings([None, ""], config, tmp_path)
