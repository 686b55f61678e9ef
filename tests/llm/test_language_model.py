"""The frozen language model: what it reads, what it refuses, and that nothing moves it."""

import shutil
import warnings

import pytest
import torch
from tests.tiny import BEGIN, CORPUS, END, KINDS, load_tiny, save_tiny, tiny_backend, tiny_model
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedTokenizerFast,
)

from allrec import files
from allrec.errors import InputError
from allrec.llm import language_model, loading
from allrec.llm.attention import additive_mask
from allrec.llm.language_model import LanguageModel, anchor_of, plain_encoder
from allrec.llm.loading import LanguageModelConfig


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("llm"), request.param)


@pytest.fixture(scope="module")
def llm(folder):
    return LanguageModel.load(LanguageModelConfig(name=str(folder)))


def load(folder):
    return LanguageModel.load(LanguageModelConfig(name=str(folder)))


def spoil(tmp_path, name):
    """A folder of a good model without the files of one name."""
    save_tiny(tmp_path)
    for path in tmp_path.glob(name):
        path.unlink()
    return tmp_path


def test_facts_are_asked_from_the_model(llm):
    assert (llm.begin, llm.end) == ([0], [1])
    assert llm.max_length == 1024
    assert llm.window == language_model.UNLIMITED
    assert llm.dtype == torch.float32


def test_width_is_that_of_the_embedding_table(tmp_path):
    llm = load_tiny(tmp_path, "opt", word_embed_proj_dim=24)
    assert llm.dim == 24
    assert llm.embed(torch.tensor([[3, 4]])).shape == (1, 2, 24)
    assert llm.hidden(torch.zeros(1, 5, 24)).shape == (1, 5, 24)


def test_scale_is_the_root_mean_square_of_the_table(folder, llm):
    table = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    assert llm.embedding_scale == pytest.approx(table.double().square().mean().sqrt().item())


def test_hidden_and_logits_are_the_models_own(folder, llm):
    ids = torch.tensor([[5, 9, 2, 7, 300], [8, 8, 31, 4, 1]])
    expected = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=ids).logits
    torch.testing.assert_close(llm.logits(llm.hidden(llm.embed(ids))), expected)


def test_what_follows_and_what_pads_changes_nothing(llm):
    embeddings = llm.embed(torch.tensor([[5, 9, 2, 7, 300], [8, 8, 31, 4, 1]]))
    torch.testing.assert_close(llm.hidden(embeddings)[1:, :3], llm.hidden(embeddings[1:, :3]))


def test_reading_on_from_a_cache_equals_reading_at_once(llm):
    embeddings = llm.embed(torch.tensor([[5, 9, 2, 7, 300]]))
    cache = llm.read(embeddings[:, :3])
    is_seen = torch.tensor([[[[True, True, True, True, False], [True] * 5]]])
    rest = llm.hidden(embeddings[:, 3:], additive_mask(is_seen, torch.float32), torch.tensor([[3, 4]]), cache)
    torch.testing.assert_close(rest, llm.hidden(embeddings)[:, 3:])


def test_reading_a_prompt_leaves_out_what_the_last_layer_would_make_of_it(llm):
    layers = [module for module in llm._model.modules() if type(module).__name__.endswith("DecoderLayer")]
    finished = []
    hooks = [layer.register_forward_hook(lambda module, *_: finished.append(module)) for layer in layers]
    llm.read(llm.embed(torch.tensor([[5, 9, 2]])))
    assert finished == layers[:-1]
    llm.hidden(llm.embed(torch.tensor([[5, 9, 2]])))
    assert finished == layers[:-1] + layers
    for hook in hooks:
        hook.remove()


def test_gradient_flows_through_what_was_read(llm):
    embeddings = llm.embed(torch.tensor([[5, 9, 2, 7]])).requires_grad_()
    (whole,) = torch.autograd.grad(llm.hidden(embeddings)[:, 3].square().sum(), embeddings)
    last = llm.hidden(embeddings[:, 3:], None, torch.tensor([[3]]), llm.read(embeddings[:, :3]))
    torch.testing.assert_close(torch.autograd.grad(last.square().sum(), embeddings)[0], whole, atol=1e-4, rtol=1e-4)


def prompt_gradient(llm):
    """Gradients of what follows two read prompts of five tokens."""
    embeddings = llm.embed(torch.tensor([[5, 9, 2, 7, 300], [8, 8, 31, 4, 1]])).requires_grad_()
    last = torch.full((2, 1), 5)
    states = llm.hidden(llm.embed(last), None, last, llm.read(embeddings))
    return torch.autograd.grad(states.cumsum(-1).square().sum(), embeddings)[0]


def test_our_attention_reads_prompts_that_ask_for_a_gradient_alone(llm, monkeypatch):
    lengths = []
    honest = loading.causal_attention
    monkeypatch.setattr(
        loading,
        "causal_attention",
        lambda query, *rest, **how: lengths.append(len(query)) or honest(query, *rest, **how),
    )
    llm.hidden(llm.embed(torch.tensor([[5, 9, 2]])))
    assert lengths == []
    prompt_gradient(llm)
    # Two prompts in the first of two layers; of the last one keys and values alone are wanted.
    assert lengths == [2]


def test_every_kind_can_read_answers_together(llm):
    assert llm.can_pack


@pytest.mark.parametrize("broken", ["ignores the mask", "ignores the positions", "refuses the mask"])
def test_a_model_that_cannot_is_found_out(tmp_path, monkeypatch, broken):
    llm = load_tiny(tmp_path)
    honest = llm.hidden

    def hidden(embeddings, attention_mask=None, position_ids=None, cache=None):
        if broken == "refuses the mask" and attention_mask is not None:
            raise ValueError("4-D masks are not supported")
        if broken == "ignores the mask":
            attention_mask = None
        return honest(embeddings, attention_mask, None if broken == "ignores the positions" else position_ids, cache)

    monkeypatch.setattr(llm, "hidden", hidden)
    assert not llm.can_pack


def test_frozen_is_bitwise_frozen(llm):
    weights = {name: value.clone() for name, value in llm._model.state_dict().items()}
    holder = nn.Linear(4, llm.dim)
    holder.llm = llm
    holder.train()
    optimizer = torch.optim.AdamW(holder.parameters(), lr=0.1)
    before = holder.weight.detach().clone()
    llm.logits(llm.hidden(holder(torch.ones(1, 3, 4)))).square().mean().backward()
    optimizer.step()
    assert not torch.equal(holder.weight, before)
    assert not any(module.training for module in llm._model.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in llm._model.parameters())
    for name, value in llm._model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_nothing_is_drawn_by_chance(llm):
    embeddings = llm.embed(torch.tensor([[5, 9, 2]]))
    assert torch.equal(llm.hidden(embeddings), llm.hidden(embeddings))


def opt_like():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(special_tokens=["<s>", "<pad>", "</s>"], initial_alphabet=alphabet, show_progress=False),
    )
    backend.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="</s>", eos_token="</s>", pad_token="<pad>")


def llama_like():
    letters = "abcdefghijklmnopqrstuvwxyzRT:.,<>/|\"'"
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters, "ro", "▁ro"]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    merges = [("r", "o"), ("▁", "ro")]
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def qwen_like():
    backend = Tokenizer(models.BPE())
    split = Regex(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(CORPUS, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    backend.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    backend.add_tokens([AddedToken("<think>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.mark.parametrize("kind", [opt_like, llama_like, qwen_like])
@pytest.mark.parametrize(
    "text", [f"</s> {BEGIN}<s>{END}", "<|im_end|>", "<think> rose <|endoftext|>", "<pad>", "<unk>"]
)
def test_text_that_looks_like_a_special_token_is_plain_text(kind, text):
    tokenizer = kind()
    ids = plain_encoder(tokenizer)([text])[0]
    assert not set(ids) & set(tokenizer.added_tokens_decoder)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_llama_like_text_does_not_begin_with_a_space(tmp_path):
    llm = load_tiny(tmp_path)
    tokenizer = llama_like()
    llm._ids = plain_encoder(tokenizer)
    llm._anchor = anchor_of(llm._ids)
    rows = llm.encode([" rose", ",", "rose", ""])
    tokens = [tokenizer.convert_ids_to_tokens(row) for row in rows]
    assert tokens == [["▁ro", "s", "e"], [","], ["ro", "s", "e"], []]


@pytest.mark.parametrize("kind", [opt_like, qwen_like])
def test_byte_level_text_is_read_as_it_is(kind):
    ids = plain_encoder(kind())
    assert anchor_of(ids) == ""


def test_no_special_token_is_added(llm):
    assert llm.encode([""]) == [[]]
    assert llm.encode([]) == []
    assert llm.encode(["rose", "rose"])[0] == tiny_backend().encode("rose").ids


def test_no_rows_have_no_texts(llm):
    assert llm.decode([]) == []
    assert llm.decode([llm.encode(["rose"])[0], []]) == ["rose", ""]


def test_model_without_a_beginning_begins_with_nothing(tmp_path):
    save_tiny(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tiny_backend(), eos_token=END).save_pretrained(tmp_path)
    assert load(tmp_path).begin == []


def test_ids_that_the_table_lacks_are_no_ids(tmp_path):
    save_tiny(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tiny_backend(), bos_token="<new>", eos_token=END).save_pretrained(tmp_path)
    assert load(tmp_path).begin == []


def test_without_an_end_it_is_refused(tmp_path):
    save_tiny(tmp_path)
    PreTrainedTokenizerFast(tokenizer_object=tiny_backend()).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no end-of-sequence token"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("*", "lacks a config.json and a tokenizer and weights"),
        ("tokenizer*", "lacks a tokenizer: expected what save_pretrained writes"),
        ("*.safetensors", "lacks weights as .*safetensors"),
        ("config.json", "lacks a config.json"),
    ],
)
def test_incomplete_folder_is_refused(tmp_path, name, message):
    with pytest.raises(InputError, match=message):
        load(spoil(tmp_path, name))


def test_pickled_weights_are_never_read(tmp_path):
    spoil(tmp_path, "*.safetensors")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="Pickled weights are never read: convert them to safetensors"):
        load(tmp_path)


def test_pickled_weights_are_not_read_for_want_of_others(tmp_path):
    save_tiny(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter.safetensors")
    torch.save(tiny_model("llama").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"cannot be loaded.*no file named model\.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_damaged_file_is_refused(tmp_path, file):
    (save_tiny(tmp_path) / file).write_text("no such thing")
    with pytest.raises(InputError, match=r"cannot be loaded.*or a packaged one: smollm2-135m"):
        load(tmp_path)


def test_foreign_code_is_never_run(tmp_path):
    save_tiny(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"model_type": "foreign", "auto_map": {"AutoConfig": "code.Foreign", "AutoModelForCausalLM": "code.Foreign"}}'
    )
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match="cannot be loaded"):
        load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["some/model", "nonsense"])
def test_unknown_name_without_a_network_is_refused(monkeypatch, name):
    monkeypatch.setattr(loading, "is_hub_reachable", lambda: False)
    with pytest.raises(InputError, match=f"language model {name} cannot be loaded.*Give a path.*gemma-3-270m"):
        LanguageModel.load(LanguageModelConfig(name=name))


def test_hub_is_out_of_reach_where_its_name_means_nothing(monkeypatch):
    def fail(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr(files, "getproxies", dict)
    monkeypatch.setattr(files, "getaddrinfo", fail)
    assert not files.is_hub_reachable()
    monkeypatch.setattr(files, "getproxies", lambda: {"https": "http://proxy"})
    assert files.is_hub_reachable()


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere"])
def test_path_to_nothing_is_refused(name):
    with pytest.raises(InputError, match=r"no folder .*nowhere"):
        LanguageModel.load(LanguageModelConfig(name=name))


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"no folder .*model\.bin"):
        load(tmp_path / "model.bin")


def test_model_that_looks_ahead_is_refused(tmp_path):
    save_tiny(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    BertForMaskedLM(BertConfig(vocab_size=400, initializer_range=0.2, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="looks ahead: it is no causal language model"):
        load(tmp_path)


def test_weights_without_a_head_are_refused(tmp_path):
    save_tiny(tmp_path)
    tiny_model("llama").model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"its weights lack lm_head\.weight"):
        load(tmp_path)


def test_scaled_and_capped_logits_are_the_models_own(tmp_path):
    save_tiny(tmp_path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GraniteConfig(vocab_size=400, logits_scaling=4.0, embedding_multiplier=3.0, pad_token_id=1, **sizes)
        GraniteForCausalLM(config).save_pretrained(tmp_path)
    ids = torch.tensor([[5, 9, 2]])
    llm = load(tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(input_ids=ids).logits
    torch.testing.assert_close(llm.logits(llm.hidden(llm.embed(ids))), expected)


def test_logits_that_cannot_be_reproduced_are_refused(tmp_path, monkeypatch):
    save_tiny(tmp_path)
    monkeypatch.setattr(LanguageModel, "logits", lambda self, hidden: self._head(hidden).float() * 2)
    with pytest.raises(InputError, match="its logits are not what its head makes"):
        load(tmp_path)


def test_fingerprint_tells_weights_apart_and_not_places(tmp_path):
    first, copy, other = (tmp_path / name for name in ("first", "copy", "other"))
    save_tiny(first)
    shutil.copytree(first, copy)
    save_tiny(other, seed=1)
    prints = [load(folder).fingerprint["sha256"] for folder in (first, copy, other)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(("asked", "got"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision(tmp_path, asked, got):
    save_tiny(tmp_path)
    llm = LanguageModel.load(LanguageModelConfig(name=str(tmp_path), dtype=asked))
    assert llm.dtype == got
    assert llm.can_pack
    assert llm.logits(llm.hidden(llm.embed(torch.tensor([[3]])))).dtype == torch.float32


def test_loading_is_quiet(tmp_path, capfd):
    save_tiny(tmp_path)
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path)
    assert "".join(capfd.readouterr()) == ""
