"""What each saving of the frozen language model does to the loss, the gradient and the speed of stage 2.

    python bench/savings.py --shape smollm2-135m
    python bench/savings.py --shape opt-125m --users 4 --compiled

``kept`` is what is kept for the gradient of prompts that are read at one time, in MiB, of the largest such part.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from unittest.mock import patch

import torch

from measure import dataset_of, options, rates, show, start
from scene import Scene, make_scene
from shapes import SHAPES, make_llm

SAVINGS = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "checkpointed": {"is_checkpointed": True},
    "compiled": {"is_compiled": True},
}


def step(scene: Scene, users: int, repeat: int) -> tuple[float, torch.Tensor]:
    """Loss and gradient of a batch."""
    scene.soft_tokens.zero_grad()
    loss = scene.loss(scene.rows(repeat, users))
    loss.backward()
    return loss.item(), torch.cat([value.grad.flatten() for value in scene.soft_tokens.parameters()])


def kept(scene: Scene, users: int) -> float:
    """MiB that are kept for the gradient of the largest part of a batch."""
    parts: list[dict[int, int]] = [{}]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        parts[-1][tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def loss_of(work: Callable[[object], object], each: Iterable[object], threads: int) -> Iterator[object]:
        for part in each:
            parts.append({})
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                yield work(part)

    weights = {value.untyped_storage().data_ptr() for value in scene.llm._model.state_dict().values()}
    with patch("allrec.llm.likelihood.ordered_map", loss_of):
        scene.loss(scene.rows(0, users))
    return max(sum(size for place, size in sizes.items() if place not in weights) for sizes in parts) / 2**20


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measures and prints; returns the ratios of speed to that of float32."""
    parser = options(__doc__ or "")
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--users", type=int, default=12, help="a repeat")
    parser.add_argument("--compiled", action="store_true", help="also compiled layers, which takes minutes to begin")
    given = start(parser, arguments)
    dataset = dataset_of(given)
    asked = {name: saving for name, saving in SAVINGS.items() if given.compiled or name != "compiled"}
    scenes = {
        name: make_scene(dataset, make_llm(given.shape, seed=given.seed, **saving), given)
        for name, saving in asked.items()
    }
    first = {name: step(scene, given.users, 0) for name, scene in scenes.items()}
    memory = {name: kept(scene, given.users) for name, scene in scenes.items()}

    def side(scene: Scene, repeat: int) -> float:
        step(scene, given.users, repeat)
        return given.users

    sides = {name: lambda repeat, scene=scene: side(scene, repeat) for name, scene in scenes.items()}
    found = {name: statistics.median(values) for name, values in rates(sides, given).items()}
    loss, gradient = first["float32"]
    rows = [
        [found[name] / found["float32"], name, first[name][0] - loss,
         float((first[name][1] - gradient).norm() / gradient.norm()), memory[name], found[name]]
        for name in asked
    ]  # fmt: skip
    header = ["speed", "saving", f"loss, from {loss:.4f}", "gradient, relative", "kept, MiB", "users/s"]
    show(f"savings in stage 2, {given.shape}", given, header, rows)
    return {name: found[name] / found["float32"] for name in asked}


if __name__ == "__main__":
    main()
