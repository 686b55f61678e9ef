"""Makes an embedded language model from nothing but what scripts/embedded_text.py and embedded_wiring.py write down.

    python scripts/train_embedded.py embedded-small --out src/allrec/embedded/embedded-small
    python scripts/train_embedded.py embedded-large --out src/allrec/embedded/embedded-large

The weights are a circuit (docs/decisions/0003). ``--practice`` trains it further, half an hour on one core; killed, it
goes on where it was. It copies and chooses worse afterwards (docs/experiments.md), so what ships is not practised.
Measure what a model can do:

    python scripts/measure_embedded.py src/allrec/embedded/embedded-small
"""

import argparse
import logging
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from allrec.llm.prompt import PromptConfig, wording_pieces
from allrec.training.batches import LazyBatches
from allrec.training.loop import LoopConfig, fit
from embedded_tasks import ANSWER, BEGIN, END, SOFT, TEXT, WORDINGS, Batch, Catalogues, Task, batch
from embedded_text import titles
from embedded_wiring import BASE, SIZES, Size, wire

VOCABULARY = 3072
VECTOR_SCALE = 0.15
"""Root mean square of a vector; that of a token's embedding is 0.31 in the small model and 0.22 in the large one."""
STEPS_AN_EPOCH = 50
TEXT_SHARE, TEXT_WEIGHT = 0.08, 0.02
MIDDLE = Task((4, 16), (0, 3), 8, (0.65, 1.0), 400, 0.3, (2, 20), 0.4, 0.5)
LONG = Task((10, 20), (0, 10), 6, (0.5, 1.0), 800, 0.2, (8, 35), 0.8, 1.0)
PHASES = (
    # task shares, tokens a step, epochs of 50 steps, learning rate
    ({MIDDLE: 0.5, LONG: 0.5}, 4000, 2, 2e-4),
    ({MIDDLE: 0.3, LONG: 0.7}, 6000, 4, 4e-4),
    ({MIDDLE: 0.2, LONG: 0.8}, 8000, 3, 2e-4),
    ({MIDDLE: 0.2, LONG: 0.8}, 8000, 1, 5e-5),
)
log = logging.getLogger("train_embedded")


def make_tokenizer(seed: int) -> Tokenizer:
    """A byte-level BPE over made-up titles and the prompt's wording. A quote is never merged with what follows it."""
    rng = np.random.default_rng([seed, 0])
    texts = [f' "{title}' for _ in range(150) for title in titles(rng, 200)]
    texts += [piece for wording in WORDINGS for piece in wording_pieces(wording, PromptConfig())] * 300
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_model(seed: int, catalogues: Catalogues, size: Size) -> LlamaForCausalLM:
    """A rotary decoder of four layers with the circuit wired in."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        intermediate_size=16,
        num_hidden_layers=4,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=size.head_dim,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        attention_bias=True,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=END,
        rope_parameters={"rope_type": "default", "rope_theta": BASE},
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    wire(
        model, generator, size, begin=BEGIN, end=END, open_quote=int(catalogues.open_quote[0]),
        close_quote=int(catalogues.close_quote[0]), listing=int(catalogues.wordings[0][3][-2]),
        last=int(catalogues.wordings[0][-1][-1]),
    )  # fmt: skip
    return model


def practice_loss(model: LlamaForCausalLM, given: Batch, open_quote: int) -> dict[str, torch.Tensor]:
    """Cross-entropy of determined tokens, and a little of that of a few others; ``chosen`` is that of first tokens."""
    embeddings = model.get_input_embeddings()(given.tokens)
    is_soft = (given.kinds == SOFT).unsqueeze(-1)
    embeddings = embeddings.masked_scatter(is_soft, given.vectors * VECTOR_SCALE)
    hidden = model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state[:, :-1]
    kinds, targets = given.kinds[:, 1:], given.tokens[:, 1:]
    is_answer = kinds == ANSWER
    is_text = (kinds == TEXT) & (torch.rand(kinds.shape) < TEXT_SHARE)
    answers = functional.cross_entropy(model.lm_head(hidden[is_answer]), targets[is_answer], reduction="none")
    chosen = answers.detach()[given.tokens[:, :-1][is_answer] == open_quote]
    texts = functional.cross_entropy(model.lm_head(hidden[is_text]), targets[is_text])
    total = answers.mean() + TEXT_WEIGHT * texts
    return {"total": total, "answers": answers.mean(), "texts": texts, "chosen": chosen.mean()}


def make(name: str, out: Path, seed: int, work: Path, has_practice: bool) -> None:
    """Writes the model in bf16 with its tokenizer."""
    tokenizer = make_tokenizer(seed)
    catalogues = Catalogues(tokenizer, np.random.default_rng([seed, 1]))
    model = make_model(seed, catalogues, SIZES[name])
    if has_practice:
        practise(model, tokenizer, seed, work)
    model.to(torch.bfloat16).save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    save_tokenizer(tokenizer, out)


def practise(model: LlamaForCausalLM, tokenizer: Tokenizer, seed: int, work: Path) -> None:
    """Trains a model through all phases."""
    open_quote = tokenizer.token_to_id('Ġ"')
    for phase, (shares, num_tokens, epochs, learning_rate) in enumerate(PHASES):
        config = LoopConfig(
            epochs=epochs, optimizer="adamw", learning_rate=learning_rate, betas=(0.9, 0.98), weight_decay=0.01,
            gradient_clip=1.0, checkpoint_every=STEPS_AN_EPOCH,
        )  # fmt: skip

        def batches(
            epoch: int, phase: int = phase, shares: dict[Task, float] = shares, size: int = num_tokens
        ) -> LazyBatches[Batch]:
            made = Catalogues(tokenizer, np.random.default_rng([seed, 2, phase, epoch]))
            tasks, weights = list(shares), list(shares.values())

            def build(index: int, _: np.ndarray) -> Batch:
                rng = np.random.default_rng([seed, 3, phase, epoch, index])
                return batch(tasks[rng.choice(len(tasks), p=weights)], made, model.config.hidden_size, size, rng)

            return LazyBatches([np.arange(1)] * STEPS_AN_EPOCH, build)

        report = fit(
            model, batches, lambda given: practice_loss(model, given, open_quote), config, seed=seed,
            stream=f"circuit {phase}",
            checkpoint=work / f"phase-{phase}.safetensors", on_progress=_on_step(phase),
        )  # fmt: skip
        log.info("phase %d: %d steps, mean losses %s", phase, report.steps, [round(loss, 3) for loss in report.losses])


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """Writes the tokenizer as transformers reads it."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|end|>",
        model_max_length=4096, clean_up_tokenization_spaces=False,
    ).save_pretrained(out)  # fmt: skip


def _on_step(phase: int):
    def on_progress(share: float, values: dict[str, float]) -> None:
        if values["step"] % 25 == 0:
            losses = [f"{name} {values[name]:.3f}" for name in ("answers", "chosen", "texts")]
            log.info("phase %d step %.0f %s", phase, values["step"], " ".join(losses))

    return on_progress


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(SIZES), help="which one")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/embedded"), help="checkpoints")
    parser.add_argument("--practice", action="store_true", help="train the circuit further")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(given.threads)
    make(given.name, given.out, given.seed, given.work, given.practice)
