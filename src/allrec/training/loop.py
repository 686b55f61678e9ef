"""The one training loop of every stage that learns by gradient descent; it resumes from its checkpoint."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from allrec import seeds
from allrec.errors import Config, InputError
from allrec.files import atomic_path, load_tensors
from allrec.parallel import OnProgress
from allrec.training.distributed import Place, Share, of_first, place, summed, together
from allrec.training.layers import DenseGradients
from allrec.training.row_shards import RowShard, gradient_norm, join_tables, part_tables, split_tables

Batch_co = TypeVar("Batch_co", covariant=True)
Batch = TypeVar("Batch")
Loss = Tensor | Mapping[str, Tensor]


@runtime_checkable
class Batches(Protocol[Batch_co]):
    """The batches of an epoch: a list, or anything that builds one on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Batch_co: ...


class LoopConfig(Config):
    """How a stage is optimised."""

    epochs: int = Field(20, ge=1, description="Passes over the training data, at most.")
    optimizer: Literal["adam", "adamw"] = Field("adam", description="adamw decays weights apart from the gradient.")
    learning_rate: float = Field(1e-3, gt=0, description="Step size of the optimizer.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Decay of Adam's two running means.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty (adam) or decoupled decay (adamw).")
    gradient_clip: float = Field(0.0, ge=0, description="Largest norm of the gradient; 0 clips nothing.")
    patience_steps: int = Field(
        0, ge=0, description="Steps without a better validation before training stops; 0 never stops."
    )
    least_steps: int = Field(0, ge=0, description="Steps before which training never stops early.")
    checkpoint_every: int = Field(200, ge=1, description="Steps between two checkpoints.")


@dataclass
class Progress:
    """The position of training, stored in the checkpoint.

    ``epoch`` counts finished epochs, ``batch`` the finished batches of the current one, ``step`` all steps;
    ``best_step`` is the step after which the best validation was measured.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    losses: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    best_step: int = 0

    def is_over(self, config: LoopConfig) -> bool:
        """Whether all epochs are done, or the validation has not improved for ``patience_steps`` steps.

        Patience counts steps and not epochs, because an epoch of a small data set is a handful of steps, in which the
        validation may fall before it rises.
        """
        stale = 0 if self.best_epoch is None else self.step - self.best_step
        is_stale = 0 < config.patience_steps <= stale and self.step >= config.least_steps
        return self.epoch >= config.epochs or (self.batch == 0 and is_stale)


@dataclass(frozen=True)
class FitReport:
    """The outcome of a training run.

    Attributes:
        steps: optimizer steps taken.
        epochs: epochs begun and finished.
        losses: mean loss of each epoch.
        validations: value of ``validate`` after each epoch, larger is better; empty without it.
        best_epoch: 0-based epoch whose parameters were kept; None without validation (the last are kept).
    """

    steps: int
    epochs: int
    losses: list[float]
    validations: list[float]
    best_epoch: int | None


def fit(
    module: nn.Module,
    batches: Callable[[int], Batches[Batch]],
    loss: Callable[[Batch], Loss],
    config: LoopConfig,
    *,
    seed: int,
    stream: str,
    checkpoint: Path | None = None,
    validate: Callable[[], float] | None = None,
    on_progress: OnProgress | None = None,
    share: Share[Batch] | None = None,
    split: tuple[str, ...] = (),
    is_validated_by_all: bool = False,
) -> FitReport:
    """Trains ``module`` in place and leaves it in eval mode, with the best parameters where there is a validation.

    Given the same arguments it ends in the same bytes, killed and resumed from ``checkpoint`` or not. In a group of
    workers (``training.distributed``) all call it, each with a share of every batch: gradients are those of one process
    but for rounding and dropout, and another number of workers may go on.

    Args:
        module: what learns; parameters without ``requires_grad`` are neither optimised nor stored.
        batches: the batches of an epoch (0-based), a function of the epoch alone.
        loss: the scalar to minimise, or named scalars of which ``total`` is minimised and all are reported.
        config: the optimizer and its limits.
        seed: seed of the run; with ``stream`` and the step it fixes dropout.
        stream: name of what is trained, so that two stages of a run draw differently (``allrec.seeds``).
        checkpoint: file to write every ``checkpoint_every`` steps, and to resume from where it exists.
        validate: called in eval mode without gradients after each epoch; larger is better.
        on_progress: called after each step with the share of all epochs done, the named losses, ``step`` and ``epoch``
            (numbers done) and, once there is one, the last ``validation``; of several workers, by rank 0.
        share: a worker's part of a batch; needed where there are several.
        split: parameters whose rows lie over several workers (``training.row_shards``), which then take whole batches;
            at the end rank 0 has them whole.
        is_validated_by_all: whether all workers call ``validate``, since it reads what they hold together.

    Raises:
        InputError: there is nothing to train on, the loss is not finite, or the checkpoint is another run's.
    """
    tables = split_tables(module, split) if place().size > 1 else {}
    state = _State(module, config, {"config": config.model_dump(mode="json"), "seed": seed, "stream": stream}, tables)
    if checkpoint is not None and checkpoint.exists():
        state.load(checkpoint)
    progress, here = state.progress, Place() if tables else place()
    learner, own_part = together(module, loss, here), _own_part(share, here, stream)
    while not progress.is_over(config):
        epoch_batches = _nonempty(batches(progress.epoch))
        module.train()
        while progress.batch < len(epoch_batches):
            batch, weight = own_part(epoch_batches[progress.batch])
            with seeded_dropout(module, seed, stream, progress.step, here.rank):
                values = _step(state, learner(batch), config.gradient_clip, weight, here)
            progress.step, progress.batch = progress.step + 1, progress.batch + 1
            progress.loss_sum += values["total"]
            if checkpoint is not None and progress.step % config.checkpoint_every == 0:
                state.save(checkpoint)
            if on_progress is not None and place().rank == 0:
                on_progress(_share(progress, len(epoch_batches), config.epochs), values | _position(progress))
        _end_epoch(state, validate, is_validated_by_all)
    if checkpoint is not None:
        state.save(checkpoint)
    state.restore_best()
    module.eval()
    return FitReport(progress.step, progress.epoch, progress.losses, progress.validations, progress.best_epoch)


class _State:
    """What a checkpoint holds: trained parameters, the best ones so far, Adam's state and the progress."""

    def __init__(
        self, module: nn.Module, config: LoopConfig, identity: dict[str, Any], tables: dict[str, RowShard]
    ) -> None:
        self.module, self.identity, self.progress, self.tables = module, identity, Progress(), tables
        self.parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        if not self.parameters:
            raise ValueError("the module has no parameter with requires_grad: there is nothing to train")
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        self.optimizer = kind(
            list(self.parameters.values()),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.best: dict[str, Tensor] = {}
        self.gradients = DenseGradients()

    def keep_best(self) -> None:
        self.best = {name: value.detach().clone() for name, value in self.parameters.items()}

    def restore_best(self) -> None:
        for name, value in self.best.items():
            self.parameters[name].data.copy_(value)
        join_tables(self.module, self.tables)

    def save(self, path: Path) -> None:
        if place().rank > 0 and not self.tables:
            return
        # One file, since two could not be renamed at one moment; one metadata key, since their order is not fixed.
        tensors = {f"parameter/{name}": self._whole(name, value) for name, value in self.parameters.items()}
        tensors |= {f"best/{name}": self._whole(name, value) for name, value in self.best.items()}
        states = self.optimizer.state_dict()["state"]
        for index, name in enumerate(self.parameters):
            for key, value in states.get(index, {}).items():
                tensors[f"optimizer/{index}/{key}"] = self._whole(name, value)
        if place().rank > 0:
            return
        metadata = {"allrec": json.dumps({"identity": self.identity, "progress": asdict(self.progress)})}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    def _whole(self, name: str, value: Tensor) -> Tensor:
        """What a checkpoint has of a parameter: of a split one all rows, in rank 0."""
        shard = self.tables.get(name)
        if shard is not None and value.dim():
            gathered = shard.gathered(value)
            value = value if gathered is None else gathered
        return value.detach().cpu().contiguous()

    def _own(self, name: str, value: Tensor) -> Tensor:
        """What this worker has of that."""
        shard = self.tables.get(name)
        return value if shard is None or value.dim() == 0 else shard.own(value).clone()

    def load(self, path: Path) -> None:
        tensors = load_tensors(path)
        header = _header(path)
        parameters = {name.partition("/")[2]: value for name, value in tensors.items() if name.startswith("parameter/")}
        self._refuse_other_run(path, header["identity"], parameters)
        for name, value in parameters.items():
            self.parameters[name].data.copy_(self._own(name, value))
        self.best = {
            name: self._own(name, tensors[f"best/{name}"]).to(value.device)
            for name, value in self.parameters.items()
            if f"best/{name}" in tensors
        }
        self._load_optimizer(tensors)
        vars(self.progress).update(header["progress"])

    def _load_optimizer(self, tensors: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        names = list(self.parameters)
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/")
                state.setdefault(int(index), {})[name] = self._own(names[int(index)], value)
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})

    def _refuse_other_run(self, path: Path, identity: dict[str, Any], parameters: dict[str, Tensor]) -> None:
        got = {name: list(value.shape) for name, value in parameters.items()}
        expected = {name: list(value.shape) for name, value in self.parameters.items()}
        expected |= {name: [shard.num_rows, *shard.shape[1:]] for name, shard in self.tables.items()}
        different = [key for key, value in self.identity.items() if identity.get(key) != value]
        different += ["parameters"] if got != expected else []
        if different:
            raise InputError(
                f"{path} is a checkpoint of another run: its {' and '.join(different)} differ from this run's. "
                "Resume with the settings it was made with, or remove the file to train anew."
            )


def _header(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if "allrec" not in metadata:
        raise InputError(f"{path} is no checkpoint of allrec: it has no record of progress. Remove it to train anew.")
    header: dict[str, Any] = json.loads(metadata["allrec"])
    return header


@contextmanager
def seeded_dropout(module: nn.Module, seed: int, stream: str, step: int, rank: int = 0) -> Iterator[None]:
    """Within the block, dropout draws from a seed of this step and worker alone; afterwards torch's generators are as
    before.

    Torch's dropout takes no generator as an argument, hence the global one, forked for a step.
    """
    devices = sorted({value.device.index for value in module.parameters() if value.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seeds.derived(seed, stream, "step", step, *([rank] if rank else [])))
        yield


def _step(
    state: _State, named: dict[str, Tensor], gradient_clip: float, weight: float, here: Place
) -> dict[str, float]:
    values = summed(named, weight, here)
    if not math.isfinite(values["total"]):
        raise InputError(
            f"the loss became {values['total']} at step {state.progress.step}, expected a number. "
            "Lower learning_rate, or set gradient_clip (1.0 is usual)."
        )
    state.optimizer.zero_grad()
    # Gradients become means over the workers, hence the number of them.
    (named["total"] * (weight * here.size)).backward()  # type: ignore[no-untyped-call]
    state.gradients.take_over(state.parameters)
    if gradient_clip > 0:
        norm = gradient_norm(state.parameters, state.tables)
        nn.utils.clip_grads_with_norm_(state.parameters.values(), gradient_clip, norm)
    state.optimizer.step()
    return values


def _end_epoch(state: _State, validate: Callable[[], float] | None, is_validated_by_all: bool) -> None:
    progress = state.progress
    progress.losses.append(progress.loss_sum / progress.batch)
    if validate is not None:
        state.module.eval()
        join_tables(state.module, state.tables)
        with torch.no_grad():
            value = of_first(lambda: float(validate()), is_validated_by_all)
        part_tables(state.module, state.tables)
        if not math.isfinite(value):
            raise ValueError(f"validation gave {value} after epoch {progress.epoch}, expected a finite number")
        progress.validations.append(value)
        if progress.best_epoch is None or value > progress.validations[progress.best_epoch]:
            progress.best_epoch, progress.best_step = progress.epoch, progress.step
            state.keep_best()
    progress.epoch, progress.batch, progress.loss_sum = progress.epoch + 1, 0, 0.0


def _own_part(share: Share[Batch] | None, here: Place, stream: str) -> Callable[[Batch], tuple[Batch, float]]:
    """What a worker takes of a batch, and the weight of that in the loss."""
    if here.size == 1:
        return lambda batch: (batch, 1.0)
    if share is None:
        raise ValueError(f"{stream} cannot be trained by {here.size} workers: it does not say how a batch is shared")
    return lambda batch: share(batch, here)


def _share(progress: Progress, num_batches: int, epochs: int) -> float:
    return (progress.epoch + progress.batch / num_batches) / epochs


def _position(progress: Progress) -> dict[str, float]:
    latest = {"validation": progress.validations[-1]} if progress.validations else {}
    return {"step": float(progress.step), "epoch": float(progress.epoch), **latest}


def _nonempty(batches: Batches[Batch]) -> Batches[Batch]:
    if len(batches) == 0:
        raise InputError("there is no training batch, expected at least one. Does every user have too short a history?")
    return batches
