"""The status of a training, read from its folder while it runs or afterwards."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nasrec_torchrec.runs.checkpoint import latest_checkpoint
from nasrec_torchrec.runs.log import logged_warnings, read_events
from nasrec_torchrec.runs.names import LOG
from nasrec_torchrec.spans import span

State = Literal["running", "ended", "asked to end", "failed", "silent"]
_STATES: dict[str, State] = {"end": "ended", "asked_to_end": "asked to end", "diverged": "failed"}


@dataclass(frozen=True)
class RunStatus:
    """The status of a training according to its log.

    Args:
        folder: run folder.
        state: ``failed`` if its numbers were no longer finite; ``silent`` if it has not ended but logged nothing for a
            while: it was killed, or it hangs.
        step: last logged step.
        total_steps: number of steps of the whole run.
        loss: training loss at the last logged step; None before the first one.
        samples_per_second: training speed at that step.
        seconds_left: seconds left at that rate; None if the run is not running.
        validation: metrics of the last epoch by name, None for an undefined one; ``tasks`` has those of further labels.
        checkpoint: name of the newest complete checkpoint.
        starts: number of starts, including restarts.
        age: time in seconds since the last event.
        ranks: number of processes at the last start.
        warnings: what went wrong, with what to do about it.
    """

    folder: Path
    state: State
    step: int
    total_steps: int
    loss: float | None
    samples_per_second: float | None
    seconds_left: float | None
    validation: dict[str, Any]
    checkpoint: str | None
    starts: int
    age: float
    ranks: int
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        share = self.step / self.total_steps if self.total_steps else 1.0
        lines = [
            f"{self.folder}: {self.state}, step {self.step:,} of {self.total_steps:,} ({share:.0%}), "
            f"{self.ranks} rank(s), started {self.starts} time(s), last event {span(self.age)} ago"
        ]
        if self.loss is not None:
            left = "" if self.seconds_left is None else f", {span(self.seconds_left)} left"
            lines.append(f"  training loss {self.loss:.5f}, {self.samples_per_second or 0:,.0f} rows/s{left}")
        if self.validation:
            auc, loss = (_metric(self.validation[name]) for name in ("auc", "log_loss"))
            lines.append(f"  validation AUC {auc}, log loss {loss} at step {self.validation['step']:,.0f}")
            for label, found in self.validation.get("tasks", {}).items():
                auc, loss = (_metric(found[name]) for name in ("auc", "log_loss"))
                lines.append(f"  validation of '{label}': AUC {auc}, log loss {loss}")
        none = (
            "none left: the best of several trials keeps its own, one folder up"
            if self.state == "ended"
            else "none yet"
        )
        lines.append(f"  checkpoint: {self.checkpoint or none}")
        return "\n".join([*lines, *(f"  warning: {message}" for message in self.warnings)])


def read_status(run_dir: Path, patience: float = 120.0, now: float | None = None) -> RunStatus:
    """Reads a training's log and checkpoints.

    Args:
        run_dir: run folder of a training.
        patience: time in seconds without an event after which it counts as silent.
        now: current time in seconds since the epoch; if unset, that of the clock.

    Raises:
        ValueError: when the folder has no log, or one that is damaged.
    """
    events = read_events(run_dir)
    try:
        return _status(run_dir, events, patience, time.time() if now is None else now)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{run_dir / LOG}: damaged: {error!r}") from None


def _status(run_dir: Path, events: list[dict[str, Any]], patience: float, now: float) -> RunStatus:
    starts = [event for event in events if event["event"] == "start"]
    if not starts:
        raise ValueError(f"{run_dir / LOG}: expected a start event, found none of {len(events)} events")
    logged = _last(events, "train")
    age = max(0.0, now - events[-1]["time"])  # the clock may have been set back
    total, step = starts[-1]["total_steps"], max(event["step"] for event in events[events.index(starts[-1]) :])
    state: State = _STATES.get(events[-1]["event"], "running" if age <= patience else "silent")
    left = None
    if logged and state == "running":
        # Rows of a step, from the rows of the steps between two log lines and their seconds.
        left = (total - step) * logged["batch_size"] / logged["samples_per_second"]
    checkpoint = latest_checkpoint(run_dir)
    return RunStatus(
        run_dir,
        state,
        step,
        total,
        logged.get("loss"),
        logged.get("samples_per_second"),
        left,
        {name: value for name, value in _last(events, "validation").items() if name not in ("event", "time")},
        checkpoint.name if checkpoint else None,
        len(starts),
        age,
        starts[-1]["ranks"],
        logged_warnings(events),
    )


def runs_under(folder: Path) -> list[Path]:
    """Returns the folder itself if it is a run folder, and otherwise the run folders directly below it, sorted."""
    if (folder / LOG).exists():
        return [folder]
    return sorted(file.parent for file in folder.glob(f"*/{LOG}"))


def _last(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next((event for event in reversed(events) if event["event"] == kind), {})


def _metric(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.5f}"
