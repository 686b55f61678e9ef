"""Training curves for TensorBoard, where it is installed; nothing else depends on them."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from allrec.pipeline import Observer

EVERY = 10
"""Steps between two points of a curve."""


@contextmanager
def recording(folder: Path, observer: Observer) -> Iterator[Observer]:
    """The observer given, and beside it a curve in ``folder`` for every named value of every stage."""
    if find_spec("tensorboard") is None:
        yield observer
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def record(stage: str, share: float, values: dict[str, float]) -> None:
            observer(stage, share, values)
            step = int(values.get("step", 0))
            if step and step % EVERY == 0:
                for name in values.keys() - {"step", "progress", "epoch"}:
                    writer.add_scalar(f"{stage}/{name}", values[name], step)

        yield record
