"""The log of a run: JSON lines, TensorBoard events and a progress bar. Only rank 0 writes."""

import json
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from nasrec_torchrec.finite import json_text
from nasrec_torchrec.messages import why
from nasrec_torchrec.progress import progress_bar
from nasrec_torchrec.runs.files import remove, upload, write_text
from nasrec_torchrec.runs.names import LOG, TENSORBOARD
from nasrec_torchrec.runs.paths import is_remote
from nasrec_torchrec.runs.record import record_start

# What the tab of hyper-parameters shows beside them, by the names that events have.
_MEASURED = ("validation/log_loss", "validation/auc", "validation/normalized_entropy", "train/loss")
# Seconds between two uploads of the log to a remote run folder; events other than training steps upload it at once.
_UPLOAD_EVERY = 30.0


class RunLog:
    """Logs the scalars of a run.

    Args:
        run_dir: run folder, which receives ``log.jsonl`` and ``tensorboard/``.
        total_steps: length of the progress bar.
        title: title of the progress bar.
        step: step from which the run resumes; logged events of later steps are dropped, except starts.
        from_scratch: whether to drop the log of an earlier run.
        settings: settings of the run, for its record if the job was called from Python.
    """

    def __init__(
        self,
        run_dir: Path,
        total_steps: int,
        title: str,
        step: int = 0,
        from_scratch: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._writes = dist.get_rank() == 0
        self._bar = progress_bar(total_steps, title, "step", initial=step, shown=self._writes)
        self._title, self._start = title, time.monotonic()
        if self._writes:
            self._remote = run_dir if is_remote(run_dir) else None
            # Files that grow line by line are written here and uploaded from time to time.
            self._folder = Path(tempfile.mkdtemp()) if self._remote else run_dir
            self._uploaded = self._start
            file = run_dir / LOG
            lines = _lines(file) if file.exists() and not from_scratch else []
            write_text(self._folder / LOG, "".join(line + "\n" for line in lines if _stays(line, step)))
            self._file = (self._folder / LOG).open("a", buffering=1)
            if not step:
                for events in (run_dir / TENSORBOARD).glob("events.out.tfevents.*"):
                    events.unlink()
            self._board = SummaryWriter(str(self._folder / TENSORBOARD), purge_step=step + 1 if step else None)
            facts = record_start(run_dir, settings)
            self._note("start", step, total_steps=total_steps, **facts)
            self._describe(step, facts, settings or {})

    def _describe(self, step: int, facts: dict[str, Any], settings: Mapping[str, Any]) -> None:
        """Gives TensorBoard a description of the run, and its settings for the tab of hyper-parameters."""
        installed = (f"{name} {version}" for name, version in facts["versions"].items() if version)
        facts = facts | {"versions": ", ".join(installed)}
        rows = "".join(f"| {name} | `{value}` |\n" for name, value in facts.items() if value is not None)
        self._board.add_text("run", f"| fact | value |\n|---|---|\n{rows}", step)
        shown = {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}
        *beginning, self._session_end = hparams(shown, dict.fromkeys(_MEASURED, 0.0))
        for summary in beginning:
            self._board._get_file_writer().add_summary(summary)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._writes:
            self._file.close()
            self._board._get_file_writer().add_summary(self._session_end)
            self._board.close()
            if self._remote:
                self._upload()
                remove(self._folder)

    def advance(self) -> None:
        """Advances the progress bar by one step."""
        self._bar.update()

    def write(self, event: str, step: int, tasks: Mapping[str, Mapping[str, Any]] | None = None, **values: Any) -> None:
        """Records an event's values, for instance ``write("train", 20, loss=0.5)``; ``tasks`` has those of labels."""
        if not self._writes:
            return
        self._note(event, step, **values, **({} if tasks is None else {"tasks": tasks}))
        scalars = dict(values)
        for task, measured in (tasks or {}).items():
            scalars |= {f"{task}/{name}": value for name, value in measured.items()}
        for name, value in scalars.items():
            if value is not None:
                self._board.add_scalar(f"{event}/{name}", value, step)
        shown = {name: f"{value:.4g}" for name, value in values.items() if name in ("loss", "samples_per_second")}
        if "waits_for_data" in values:
            shown["waits_for_data"] = f"{values['waits_for_data']:.0%}"
        if shown:
            self._bar.set_postfix(shown, refresh=False)

    def warn(self, step: int, messages: Iterable[str], aloud: bool = True) -> None:
        """Records warnings, and prints them above the progress bar unless ``aloud`` is false."""
        for message in messages if self._writes else ():
            self._note("warning", step, message=message)
            if aloud:
                tqdm.write(f"warning: {self._title}: {message}", file=sys.stderr)

    def note(self, event: str, step: int) -> None:
        """Records an event without values."""
        if self._writes:
            self._note(event, step)

    def _note(self, event: str, step: int, **values: Any) -> None:
        record: dict[str, Any] = {
            "event": event,
            "step": step,
            "time": round(time.time(), 3),
            "seconds": round(time.monotonic() - self._start, 3),
        }
        self._file.write(json_text(record | values) + "\n")
        if self._remote and (event != "train" or time.monotonic() - self._uploaded > _UPLOAD_EVERY):
            self._board.flush()
            self._upload()

    def _upload(self) -> None:
        assert self._remote is not None
        for file in [self._folder / LOG, *self._folder.glob(f"{TENSORBOARD}/*")]:
            upload(file, self._remote / str(file.relative_to(self._folder)))
        self._uploaded = time.monotonic()


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """What a run logged so far, but for a line that is being written, or was damaged.

    Raises:
        ValueError: If the folder has no log.
    """
    events = (_event(line) for line in _lines(run_dir / LOG))
    return [event for event in events if event is not None]


def logged_warnings(events: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Returns the warnings among what a run logged, each once."""
    return tuple(dict.fromkeys(str(event["message"]) for event in events if event["event"] == "warning"))


def warnings_of(run_dir: Path) -> tuple[str, ...]:
    """Returns the warnings that a run logged, each once; none where there is no log."""
    return logged_warnings(read_events(run_dir)) if (run_dir / LOG).exists() else ()


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read: {why(error)}") from None


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):  # cut off when the run was killed
        return None
    known = isinstance(event, dict) and isinstance(event.get("event"), str) and isinstance(event.get("step"), int)
    return event if known and isinstance(event.get("time"), int | float) else None


def _stays(line: str, step: int) -> bool:
    event = _event(line)
    return event is not None and (event["step"] <= step or event["event"] == "start")
