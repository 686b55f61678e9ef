"""Plain decoding, against a loop that reads everything again for every token."""

import json
from types import SimpleNamespace

import pytest
import torch
from tests.tiny import KINDS, save_tiny

from allrec.errors import InputError, Wording
from allrec.llm import generation
from allrec.llm.generation import LIST_STOP, TITLE_STOP, Stop, count_marks, write
from allrec.llm.language_model import LanguageModel
from allrec.llm.likelihood import score_candidates, take_prompts
from allrec.llm.loading import LanguageModelConfig
from allrec.llm.prompt import GENRES, Packed, PromptBuilder, PromptConfig
from allrec.llm.soft_tokens import embed_prompts

TITLES = ["rose soap", "night cream with velvet and silver", None, "oil", "comb"]
HISTORIES, CANDIDATES = [[0, 3, 1], [], [4]], [[1, 2, 4, 0], [3, 4], []]
NEVER = Stop("\x00", 1)


def scene(folder):
    llm = LanguageModel.load(LanguageModelConfig(name=str(folder)))
    layout = {"begin": llm.begin, "end": llm.end, "max_length": llm.max_length}
    builder = PromptBuilder(llm.encode, TITLES, Wording(), PromptConfig(), **layout)
    prompts = builder.prompts(HISTORIES, CANDIDATES)
    soft = torch.randn(len(prompts.soft_items), llm.dim, generator=torch.Generator().manual_seed(0))
    return SimpleNamespace(llm=llm, builder=builder, prompts=prompts, soft=soft * llm.embedding_scale)


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    return scene(save_tiny(tmp_path_factory.mktemp("llm"), request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return scene(save_tiny(tmp_path_factory.mktemp("llm")))


def alone(kind, row):
    """One prompt of the batch with its soft tokens."""
    prompts, soft_rows = take_prompts(kind.prompts, [row])
    return prompts, kind.soft[torch.from_numpy(soft_rows)]


def beam(kind, row, k, steps, stop=NEVER):
    """The k best texts of a beam, with no cache and no padding: (sum of log-probabilities, token ids)."""
    embeddings = embed_prompts(kind.llm, *alone(kind, row))
    rows, done = [(0.0, [])], []

    def is_whole(ids):
        text = "".join(kind.llm.decode([[token] for token in ids]))
        return ids[-1] == kind.llm.end[0] or sum(text.count(mark) for mark in stop.marks) >= stop.number

    for _ in range(steps):
        grown = []
        for total, ids in rows:
            read = torch.cat([embeddings, kind.llm.embed(torch.tensor([ids], dtype=torch.int64))], 1)
            log_probs = kind.llm.logits(kind.llm.hidden(read)[0, -1]).log_softmax(-1)
            best = log_probs.topk(2 * k)
            grown += [(total + p, [*ids, i]) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
        grown.sort(reverse=True)
        done += [(total, ids) for total, ids in grown[:k] if is_whole(ids)]
        rows = [(total, ids) for total, ids in grown if not is_whole(ids)][:k]
    return sorted([*done, *rows], reverse=True)[:k]


@pytest.mark.parametrize("stop", [NEVER, Stop("aeiou", 2)])
@pytest.mark.parametrize("k", [1, 3])
def test_what_is_written_is_the_likeliest(kind, k, stop):
    together = write(kind.llm, kind.prompts, kind.soft, stop, k=k, max_tokens=6)
    assert [len(row) for row in together] == [k] * 3
    for row, written in enumerate(together):
        expected = beam(kind, row, k, 6, stop)
        texts = kind.llm.decode([[i for i in ids if i != kind.llm.end[0]] for _, ids in expected])
        assert [text.text for text in written] == [text.strip() for text in texts]
        assert [text.log_prob for text in written] == pytest.approx([total for total, _ in expected], abs=1e-3)


@pytest.mark.parametrize("k", [1, 3])
def test_a_user_alone_gets_what_the_batch_gets(kind, k):
    together = write(kind.llm, kind.prompts, kind.soft, NEVER, k=k, max_tokens=6)
    for row, expected in enumerate(together):
        (written,) = write(kind.llm, *alone(kind, row), NEVER, k=k, max_tokens=6)
        assert [text.text for text in written] == [text.text for text in expected]
        assert [text.log_prob for text in written] == pytest.approx([t.log_prob for t in expected], abs=1e-3)


def test_soft_tokens_are_read(kind):
    with_soft, without = (write(kind.llm, kind.prompts, soft, NEVER) for soft in (kind.soft, 0 * kind.soft))
    assert abs(with_soft[0][0].log_prob - without[0][0].log_prob) > 1e-2


def first_ids(kind, row=0, steps=8):
    return beam(kind, row, 1, steps)[0][1]


def test_a_text_ends_where_its_marks_are_full(llama):
    """The mark is a character that the model writes by itself, for a random one writes no quotes."""
    ids = first_ids(llama)
    texts = llama.llm.decode([[token] for token in ids])
    place = next(place for place, text in enumerate(texts) if place > 1 and text.strip().isascii() and text.strip())
    mark = texts[place].strip()[0]
    number = sum(text.count(mark) for text in texts[: place + 1])
    ((written,),) = write(llama.llm, *alone(llama, 0), Stop(mark, number), max_tokens=8)
    (whole,) = llama.llm.decode([ids[: place + 1]])
    assert (written.text, written.is_whole) == (whole.strip(), True)
    answers = Packed.of([ids[: place + 1]])
    score = score_candidates(llama.llm, alone(llama, 0)[0], answers, torch.ones(1, 1, dtype=torch.bool).numpy(),
                             alone(llama, 0)[1])  # fmt: skip
    assert written.log_prob == pytest.approx(score.item(), abs=1e-3)
    ((broken,),) = write(llama.llm, *alone(llama, 0), Stop(mark, number + 99), max_tokens=8)
    assert not broken.is_whole


def test_quotes_new_lines_and_the_end_of_sequence_end_a_text(llama):
    llm = llama.llm
    quoted = llm.encode([' "rose soap" more'])[0]
    marks = count_marks(llm, TITLE_STOP.marks)
    ended = generation._ended(marks, llm.end[0], TITLE_STOP.number, torch.tensor(quoted))
    places = [place for place, token in enumerate(quoted) if '"' in llm.decode([[token]])[0]]
    assert len(places) == 2
    assert ended.tolist() == [place >= places[1] for place in range(len(quoted))]
    listed = torch.tensor([*llm.encode(["oil"])[0], llm.end[0], *llm.encode(["oil"])[0]])
    ended = generation._ended(count_marks(llm, LIST_STOP.marks), llm.end[0], LIST_STOP.number, listed)
    assert ended.tolist() == [False] * (len(listed) // 2) + [True] * (len(listed) // 2 + 1)
    assert count_marks(llm, ".\n")[llm.encode(["\n"])[0]].tolist() == [1]


def test_what_comes_after_the_end_counts_for_nothing(llama):
    ids = torch.tensor([[5, 6, 1, 7, 1]])
    log_probs = torch.tensor([[-1.0, -2.0, -4.0, -8.0, -16.0]])
    is_ended = torch.tensor([[False, False, True, True, True]])
    (written,) = generation._texts(llama.llm, ids, log_probs, is_ended)
    assert written == (llama.llm.decode([[5, 6]])[0].strip(), -1.0 - 2 - 4, True)


def test_no_text_is_longer_than_the_models_room(llama, monkeypatch):
    longest = int(llama.prompts.tokens.lengths.max())
    unbounded = write(llama.llm, llama.prompts, llama.soft, NEVER, max_tokens=2)
    monkeypatch.setattr(llama.llm, "max_length", longest + 2)
    assert write(llama.llm, llama.prompts, llama.soft, NEVER, max_tokens=20) == unbounded
    monkeypatch.setattr(llama.llm, "max_length", longest)
    with pytest.raises(InputError, match=f"prompt of {longest} tokens leaves a model of {longest} no room"):
        write(llama.llm, llama.prompts, llama.soft, NEVER)


@pytest.mark.parametrize("k", [1, 3])
def test_settings_that_a_model_brings_along_change_nothing(tmp_path, k):
    plain = scene(save_tiny(tmp_path))
    expected = write(plain.llm, plain.prompts, plain.soft, NEVER, k=k, max_tokens=6)
    settings = {"do_sample": True, "temperature": 5.0, "top_k": 3, "repetition_penalty": 9.0, "no_repeat_ngram_size": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings | {"min_new_tokens": 5, "max_length": 3}))
    llm = LanguageModel.load(LanguageModelConfig(name=str(tmp_path)))
    assert write(llm, plain.prompts, plain.soft, NEVER, k=k, max_tokens=6) == expected


def test_genres_are_asked_for_without_candidates(llama):
    prompts = llama.builder.prompts([[0]], [[]], GENRES)
    (text,) = llama.llm.decode([prompts.tokens[0].tolist()])
    assert text.endswith(' "rose soap" before. The item genres that this user likes are')
    assert "recommendation" not in text


def test_decoding_gives_back_what_was_encoded(llama):
    titles = ["rose soap", 'a "quoted" one', "ünïcode 𝒳", " two  spaces ", "<|end|> plainly"]
    assert llama.llm.decode(llama.llm.encode(titles)) == titles
    assert llama.llm.decode([[*llama.llm.begin, *llama.llm.encode(["oil"])[0], *llama.llm.end]]) == ["oil"]
