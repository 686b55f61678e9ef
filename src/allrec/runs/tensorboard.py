"""Training curves for TensorBoard, where it is installed; only pictures depend on them."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from allrec.parallel import Observer

EVERY = 10
"""Steps between two points of a curve."""


@contextmanager
def recording(folder: Path, observer: Observer) -> Iterator[Observer]:
    """The observer given, and beside it a curve in ``folder`` for every named value of every stage."""
    if find_spec("tensorboard") is None:
        yield observer
        return
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))

    def record(stage: str, share: float, values: dict[str, float]) -> None:
        observer(stage, share, values)
        step = int(values.get("step", 0))
        if step and step % EVERY == 0:
            # Curves that cannot be written stop no training.
            with suppress(OSError):
                for name in values.keys() - {"step", "progress", "epoch"}:
                    writer.add_scalar(f"{stage}/{name}", values[name], step)

    try:
        yield record
    finally:
        with suppress(OSError):
            writer.close()


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every curve that ``recording`` wrote, the latest value of a step that was taken twice.

    Empty without TensorBoard, or where there is nothing to read.
    """
    if find_spec("tensorboard") is None or not any(folder.glob("events.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        name: sorted({event.step: event.value for event in events.Scalars(name)}.items())
        for name in events.Tags()["scalars"]
    }
