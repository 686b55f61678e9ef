"""What workers do with a language model that lies in parts over them: importable, of files alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from allrec.data import load_dataset
from allrec.files import save_tensors, write_json
from allrec.llm.language_model import LanguageModel
from allrec.llm.likelihood import score_candidates
from allrec.llm.model_config import LanguageModelConfig
from allrec.llm.prompt import PromptBuilder, PromptConfig
from allrec.llm.sharding import held_bytes
from allrec.training.distributed import place


@dataclass(frozen=True)
class Score:
    """Scores titles by a language model, in parts where there are several workers; each notes what it holds."""

    llm: Path
    dataset: Path
    out: Path

    def __call__(self):
        config = LanguageModelConfig(name=str(self.llm), dtype="float32", is_sharded=True)
        llm, dataset = LanguageModel.load(config), load_dataset(self.dataset)
        assert llm.is_sharded == (place().size > 1)
        builder = PromptBuilder.of(llm, dataset.titles, dataset.wording, PromptConfig(max_title_tokens=8))
        histories = [dataset.history(user)[:4] for user in range(5)]
        prompts = builder.prompts(histories, [()] * len(histories))
        candidates = np.arange(5 * 3).reshape(5, 3)
        soft = torch.randn(len(prompts.soft_items), llm.dim, generator=torch.Generator().manual_seed(1))
        answers = builder.answers(candidates.ravel())
        scores = score_candidates(llm, prompts, answers, np.ones((5, 3), bool), soft)
        save_tensors(self.out / f"scores-{place().rank}.safetensors", {"scores": scores})
        write_json(self.out / f"held-{place().rank}.json", {"bytes": held_bytes(llm._model)})
