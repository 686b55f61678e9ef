"""Killed in every stage and resumed, a run ends in the same bytes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from allrec.config import dump_recipe
from allrec.files import read_json, sha256_file
from allrec.recommender import AllRec
from worlds import FUSED, READ_OUT, make_world

DRIVER = """
import os, signal, sys
from pathlib import Path
import torch
from allrec.config import load_recipe
from allrec.llm import loading
from allrec.recommender import AllRec

dataset, run, llm, recipe, cache, stage = sys.argv[1:]
torch.set_num_threads(1)
loading.faster_dtype = lambda device: "float32"

def kill(name, share, values):
    # Past the first checkpoint, before the end; of the ensemble, in the midst of its second training.
    if name == stage and values.get("step", 3) >= 3 and share > (0.7 if name == "ensemble" else 0):
        os.kill(os.getpid(), signal.SIGKILL)

AllRec.train(dataset, run=run, recipe=load_recipe(recipe), llm=llm, resume=True, cache=Path(cache), observer=kill)
"""


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_in_the_same_bytes(tmp_path: Path) -> None:
    dataset, llm, recipe = make_world(tmp_path, (*FUSED, *READ_OUT, "fusion.evidence.ensemble=3"))
    whole = AllRec.train(dataset, run=tmp_path / "whole", recipe=recipe, llm=str(llm), cache=tmp_path / "cache-1")
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    stages = (
        "backbone", "text", "alignment", "content", "ensemble", "language_model", "readout", "fusion", "evaluate",
        "none",
    )  # fmt: skip
    for stage in stages:
        arguments = (driver, dataset, tmp_path / "killed", llm, tmp_path / "recipe.toml", tmp_path / "cache-2", stage)
        command = [sys.executable, *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert ended.returncode == (0 if stage == "none" else -signal.SIGKILL), ended.stderr
    expected, got = (read_json(tmp_path / name / "metrics.json") for name in ("whole", "killed"))
    assert got["results"] == expected["results"]
    assert got["comparisons"] == expected["comparisons"]
    tensors = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.safetensors"))
    assert len(tensors) > 5
    for path in tensors:
        assert sha256_file(tmp_path / "killed" / path) == sha256_file(tmp_path / "whole" / path), path
    trained = {sha256_file(tmp_path / "whole" / "ensemble" / f"{number}-backbone.safetensors") for number in (1, 2)}
    assert len(trained | {sha256_file(tmp_path / "whole" / "backbone" / "model.safetensors")}) == 3
    assert whole.run.state() == ", ".join(f"{stage}: done" for stage in whole.run.manifest["stages"])
