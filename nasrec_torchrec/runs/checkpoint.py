"""Checkpoints of sharded models: written beside the training, and readable by any number of ranks or none."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from nasrec_torchrec.finite import json_text
from nasrec_torchrec.runs.files import read_text, remove, write_text
from nasrec_torchrec.runs.paths import RemotePath

FOLDER, MODEL = "checkpoints", "model.json"
_PROGRESS_FILE, _BEST_FILE = "progress.json", "best.json"


class Checkpoints:
    """Writes ``run_dir/checkpoints/step-<step>`` while the training goes on; every method is collective.

    A folder takes its name when it is complete, or, in a remote storage, counts when it has its ``.metadata``, which is
    written last. Then older ones are dropped, but for the last few and the best.

    Args:
        run_dir: of the run.
        description: JSON text that says which model it is, put into every checkpoint.
        model: sharded.
        optimizer: of the tables and the dense part.
        keep: how many of the last checkpoints stay.
        replace: drop what an earlier run left there, once there is a first checkpoint of this one.
    """

    def __init__(
        self,
        run_dir: Path,
        description: str,
        model: DistributedModelParallel,
        optimizer: KeyedOptimizer,
        keep: int = 2,
        replace: bool = False,
    ) -> None:
        self._folder, self._keep = run_dir / FOLDER, keep
        self._description, self._model, self._optimizer = description, model, optimizer
        self._stale = sorted(self._folder.glob("step-*")) if replace else []
        # Ranks talk about a checkpoint in the background while they talk about the next step.
        self._group = dist.new_group(backend="gloo")
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()
        elif self._pending is not None:
            # What was begun is finished if the other ranks still live.
            with suppress(Exception, dcp.api.CheckpointException):
                self._pending.result(timeout=60)
        self._pool.shutdown(wait=False)

    def save(self, step: int, progress: dict[str, Any], best: bool = False) -> None:
        """Copies the state and returns; :meth:`wait`, or the next call, raises what went wrong with writing it.

        Args:
            step: names the checkpoint.
            progress: JSON values to come back to.
            best: the one that is kept and loaded for use, until another one is the best.
        """
        self.wait()
        final = self._folder / f"step-{step:08d}"
        # An object store renames file by file, the first of which would be .metadata.
        temporary = final if isinstance(final, RemotePath) else self._folder / f".{final.name}.tmp"
        if dist.get_rank() == 0:
            remove(temporary)
            write_text(temporary / MODEL, self._description)
            write_text(temporary / _PROGRESS_FILE, json_text(progress))
        dist.barrier(self._group)
        written = dcp.async_save(
            self._state(), checkpoint_id=temporary, process_group=self._group, async_stager=BlockingAsyncStager()
        )
        assert isinstance(written, Future)
        self._pending = self._pool.submit(self._publish, written, temporary, final, best)

    def wait(self) -> None:
        """Until the last checkpoint has its name."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
            dist.barrier(self._group)

    def load(self, folder: Path) -> dict[str, Any]:
        """Restores model and optimizer from a checkpoint of any number of ranks.

        Returns:
            dict: the progress it was saved with.
        """
        state = self._state()
        dcp.load(state, checkpoint_id=folder)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        return json.loads(read_text(folder / _PROGRESS_FILE))

    def _state(self) -> dict[str, Any]:
        return {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}

    def _publish(self, written: "Future[Any]", temporary: Path, final: Path, best: bool) -> None:
        written.result()
        if dist.get_rank() != 0:
            return
        if temporary != final:
            remove(final)
            temporary.rename(final)
        stale, self._stale = self._stale, []
        if stale:
            (self._folder / _BEST_FILE).unlink(missing_ok=True)
        if best:
            write_text(self._folder / _BEST_FILE, json.dumps({"folder": final.name}))
        kept = {final, _best(self._folder), *_complete(self._folder)[-self._keep :]} - (set(stale) - {final})
        for other in self._folder.glob("step-*"):
            if other not in kept:
                remove(other)


def _complete(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("step-*/.metadata"))


def _best(folder: Path) -> Path | None:
    with suppress(OSError, ValueError, KeyError):
        found: Path = folder / json.loads((folder / _BEST_FILE).read_text())["folder"]
        return found if (found / ".metadata").exists() else None
    return None


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run, from which it would go on; None when there is none."""
    complete = _complete(run_dir / FOLDER)
    return complete[-1] if complete else None


def kept_checkpoint(run_dir: Path) -> Path:
    """The checkpoint of a run that is meant for use: the best on validation, or else the newest.

    Raises:
        ValueError: when the run has none.
    """
    found = _best(run_dir / FOLDER) or latest_checkpoint(run_dir)
    if found is None:
        raise ValueError(f"{run_dir}: no complete checkpoint found under {FOLDER}/")
    return found
