"""Checkpoints of sharded models, written in the background and readable by any number of ranks or by none."""

import hashlib
import json
import sys
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypedDict

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.optim.keyed import KeyedOptimizer

from nasrec_torchrec.finite import json_text
from nasrec_torchrec.runs import names
from nasrec_torchrec.runs.files import read_json, remove, write_text
from nasrec_torchrec.runs.paths import is_remote
from nasrec_torchrec.runs.tensors import DigestingWriter, load_tensors


class _Best(TypedDict):
    """Names the checkpoint to use: ``folder`` once it is complete, and ``before`` until then."""

    folder: str
    before: str | None


class Checkpoints:
    """Writes ``run_dir/checkpoints/step-<step>`` while the training continues. Every method is collective.

    A folder gets its name when it is complete. In a remote storage, which cannot rename, it is complete when it has its
    ``digests.json``, the checksums of the other files, which is written last. Then older checkpoints are removed,
    except the last few and the best one.

    Args:
        run_dir: run folder.
        description: JSON text that describes the model; every checkpoint holds it.
        model: sharded model.
        optimizer: optimizer of the tables and the dense part.
        keep: number of the latest checkpoints to keep.
        replace: whether to remove the checkpoints of an earlier run once this run has written its first one.
        averaged: weights by name that have an average, and this average. Whoever loads the model of a checkpoint gets
            the averages; a run that is resumed gets both.
    """

    def __init__(
        self,
        run_dir: Path,
        description: str,
        model: DistributedModelParallel,
        optimizer: KeyedOptimizer,
        keep: int = 2,
        replace: bool = False,
        averaged: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self._averaged = averaged or {}
        self._folder, self._keep = run_dir / names.CHECKPOINTS, keep
        self._description, self._model, self._optimizer = description, model, optimizer
        self._stale = sorted(self._folder.glob(names.CHECKPOINT_PATTERN)) if replace else []
        best = None if replace else _best(self._folder)
        self._best = best.name if best is not None else None
        # Ranks communicate about a checkpoint in the background while they communicate about the next step.
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
            # A checkpoint that was begun is completed if the other ranks are still alive.
            with suppress(Exception, dcp.api.CheckpointException):
                self._pending.result(timeout=60)
        self._pool.shutdown(wait=False)

    def save(self, step: int, progress: dict[str, Any], best: bool = False) -> None:
        """Copies the state and returns; an error while writing it is raised by :meth:`wait` or by the next call.

        Args:
            step: step that names the checkpoint.
            progress: JSON values that :meth:`load` returns.
            best: whether this is the best checkpoint so far, which is kept and loaded for use.
        """
        self.wait()
        final = self._folder / names.CHECKPOINT.format(step)
        # An object store renames file by file, and .metadata would be the first.
        temporary = final if is_remote(final) else self._folder / f".{final.name}.nasrec-tmp"
        texts = {names.DESCRIPTION: self._description, names.PROGRESS: json_text(progress)}
        if dist.get_rank() == 0:
            remove(temporary)
            for name, text in texts.items():
                write_text(temporary / name, text)
        dist.barrier(self._group)
        writer = DigestingWriter(temporary)
        written = dcp.async_save(
            self._state(), storage_writer=writer, process_group=self._group, async_stager=BlockingAsyncStager()
        )
        assert isinstance(written, Future)
        digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
        self._pending = self._pool.submit(self._publish, written, writer, digests, temporary, final, best)

    def wait(self) -> None:
        """Until the last checkpoint has its name.

        Raises:
            OSError: on every rank, when one could not write its part, on a full disk for instance.
        """
        if self._pending is not None:
            try:
                self._pending.result()
            except dcp.api.CheckpointException as failed:  # its text is the tracebacks of all ranks
                causes = [error for error, _ in failed.failures.values() if isinstance(error, OSError)]
                if not causes:
                    raise
                raise OSError(causes[0].errno, causes[0].strerror, str(self._folder)) from None
            self._pending = None
            dist.barrier(self._group)

    def newest(self) -> Path | None:
        """Returns the newest undamaged checkpoint; damaged ones that are newer are named on standard error.

        Raises:
            ValueError: If there are checkpoints and all of them are damaged.
        """
        return newest_intact(self._folder.parent, collective=True)

    def resume(self, folder: Path, best_step: int | None) -> dict[str, Any]:
        """Restores model and optimizer and resumes the run from there; newer checkpoints are removed at the next save.

        Args:
            folder: folder of a checkpoint, of any number of ranks.
            best_step: step of the best checkpoint so far.

        Returns:
            dict: The progress that was saved with it.
        """
        self._best = None if best_step is None else names.CHECKPOINT.format(best_step)
        self._stale += [other for other in self._folder.glob(names.CHECKPOINT_PATTERN) if other.name > folder.name]
        return self.load(folder)

    def load(self, folder: Path) -> dict[str, Any]:
        """Restores model and optimizer from a checkpoint of any number of ranks.

        Returns:
            dict: The progress that was saved with it.

        Raises:
            ValueError: If it cannot be read.
        """
        state = self._state()
        if self._averaged:
            state["trained"] = {name: weight.clone() for name, weight in state["trained"].items()}
        load_tensors(state, folder)
        self._model.load_state_dict(state["model"])
        for name, (weight, _) in self._averaged.items():
            weight.copy_(state["trained"][name])
        self._optimizer.load_state_dict(state["optimizer"])
        return read_progress(folder)

    def load_best(self) -> None:
        """Restores the best checkpoint of the run."""
        assert self._best is not None
        self.load(self._folder / self._best)

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
        if self._averaged:
            state["model"].update({name: average for name, (_, average) in self._averaged.items()})
            state["trained"] = {name: weight for name, (weight, _) in self._averaged.items()}
        return state

    def _publish(
        self,
        written: "Future[Any]",
        writer: DigestingWriter,
        digests: dict[str, str],
        temporary: Path,
        final: Path,
        best: bool,
    ) -> None:
        written.result()
        everyones: list[dict[str, str]] = [{} for _ in range(dist.get_world_size(self._group))]
        dist.all_gather_object(everyones, writer.digests, self._group)
        before, self._best = self._best, final.name if best else self._best
        if dist.get_rank() != 0:
            return
        for one in everyones:
            digests |= one
        # The record names the best checkpoint both before and after the new one gets its name.
        if self._best is not None:
            write_text(self._folder / names.BEST, json.dumps(_Best(folder=self._best, before=before)))
        else:
            (self._folder / names.BEST).unlink(missing_ok=True)
        for other in self._stale:
            if other != final:
                remove(other)
        self._stale = []
        write_text(temporary / names.DIGESTS, json.dumps(digests, indent=2))
        if temporary != final:
            remove(final)
            temporary.rename(final)
        kept = {final, self._folder / (self._best or final.name)}
        kept |= set(complete_checkpoints(self._folder.parent)[-self._keep :])
        for other in self._folder.glob(names.CHECKPOINT_PATTERN):
            if other not in kept:
                remove(other)


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Returns the complete checkpoints of a run, the newest last."""
    folder = run_dir / names.CHECKPOINTS
    # The first version wrote no checksums: its checkpoints have .metadata alone.
    return sorted(
        {file.parent for file in folder.glob(f"{names.CHECKPOINT_PATTERN}/{names.DIGESTS}")}
        or {file.parent for file in folder.glob(f"{names.CHECKPOINT_PATTERN}/{names.DCP_METADATA}")}
    )


def latest_checkpoint(run_dir: Path) -> Path | None:
    """Returns the newest complete checkpoint of a run, damaged or not; None if there is none."""
    complete = complete_checkpoints(run_dir)
    return complete[-1] if complete else None


def newest_intact(run_dir: Path, collective: bool = False) -> Path | None:
    """Returns the newest undamaged checkpoint of a run; None if the run has none.

    Args:
        run_dir: run folder.
        collective: whether all ranks call it and share the work.

    Raises:
        ValueError: If the run has checkpoints and all of them are damaged.
    """
    complete = complete_checkpoints(run_dir)
    damages: list[str] = []
    for folder in reversed(complete):
        damage = find_damage(folder, collective)
        if damage is None:
            if damages and (not collective or dist.get_rank() == 0):
                print(f"{'; '.join(damages)}; using {folder.name}, the one before", file=sys.stderr)
            return folder
        damages.append(damage)
    if damages:
        raise ValueError(f"{'; '.join(damages)}; {run_dir} has no other checkpoint")
    return None


def kept_checkpoint(run_dir: Path, collective: bool = False) -> Path:
    """Returns the checkpoint of a run to use: the best one on validation, or else the newest undamaged one.

    Args:
        run_dir: run folder.
        collective: whether all ranks call it and share the work.

    Raises:
        ValueError: If the run has no checkpoint, or the best one is damaged.
    """
    folder = run_dir / names.CHECKPOINTS
    if (best := _best(folder)) is not None:
        if damage := find_damage(best, collective):
            raise ValueError(f"{damage}; it is the best of the run, which no other checkpoint can stand for")
        return best
    found = newest_intact(run_dir, collective)
    if found is None:
        raise ValueError(f"{run_dir}: no complete checkpoint found under {names.CHECKPOINTS}/")
    return found


def keep_best(run_dir: Path) -> None:
    """Removes every checkpoint of a finished run but the best one; of a run that records no best one, none.

    Nothing reads the others again: a finished run is not resumed, and :func:`kept_checkpoint` returns the best one.
    """
    folder = run_dir / names.CHECKPOINTS
    if (best := _best(folder)) is not None:
        for other in folder.glob(names.CHECKPOINT_PATTERN):
            if other != best:
                remove(other)


def find_damage(folder: Path, collective: bool = False) -> str | None:
    """Checks the files of a checkpoint against their checksums and returns what is wrong; None if nothing is.

    Args:
        folder: folder of a checkpoint.
        collective: whether all ranks call it and share the work.
    """
    share, shares = (dist.get_rank(), dist.get_world_size()) if collective else (0, 1)
    found = _find_damage(folder, share, shares)
    if collective:
        everyones: list[str | None] = [None] * shares
        dist.all_gather_object(everyones, found)
        found = next((one for one in everyones if one is not None), None)
    return found


def _find_damage(folder: Path, share: int, shares: int) -> str | None:
    record = folder / names.DIGESTS
    if not record.exists():
        return None  # the first version wrote no checksums
    try:
        digests = read_json(record, dict[str, str])
        for name in sorted(digests)[share::shares]:
            digest = hashlib.sha256()
            with (folder / name).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != digests[name]:
                return f"{folder / name}: damaged, its checksum is another one than when it was written"
    except (OSError, ValueError) as error:
        return str(error) if str(folder) in str(error) else f"{folder}: damaged: {error}"
    return None


def read_progress(folder: Path) -> dict[str, Any]:
    """Reads the progress that was saved with a checkpoint.

    Raises:
        ValueError: If its file is damaged.
    """
    return read_json(folder / names.PROGRESS, dict[str, Any])


def _best(folder: Path) -> Path | None:
    """Returns the best checkpoint in a folder; None if the run records none.

    Raises:
        ValueError: If its record is damaged, or names a checkpoint that no longer exists.
    """
    file = folder / names.BEST
    if not file.exists():
        return None
    record = read_json(file, dict[str, str | None])
    complete = {path.name: path for path in complete_checkpoints(folder.parent)}
    if not isinstance(record.get("folder"), str):
        raise ValueError(f"{file}: damaged, folder: expected the name of a checkpoint")
    for name in (record["folder"], record.get("before")):
        if name in complete:
            return complete[name]
    if "before" in record and record["before"] is None:
        return None  # the first best one was never completed
    raise ValueError(f"{file}: names {record['folder']}, and no such checkpoint is there")
