"""The folder of an unfinished preparation, and whether one is needed at all."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from nasrec_torchrec.datasets import pieces
from nasrec_torchrec.datasets.contents import contents
from nasrec_torchrec.datasets.diagnosis import guesses
from nasrec_torchrec.datasets.preparation_job import Job
from nasrec_torchrec.datasets.prepared import EARLIER_FORMAT, MANIFEST, OURS, REJECTS, check_files, read_manifest
from nasrec_torchrec.runs.files import is_published, place_beside, write_text
from nasrec_torchrec.runs.lock import lock
from nasrec_torchrec.runs.names import LOCK
from nasrec_torchrec.runs.redaction import redact

_SOURCES = "sources.json"


def is_current(job: Job) -> bool:
    """Returns whether the data set already exists.

    Raises:
        ValueError: If something else is in its place that must not be replaced.
    """
    if not is_published(job.out, MANIFEST):
        return False
    if job.config.overwrite and not (job.out / MANIFEST).exists():
        mine = sorted(entry.name for entry in job.out.iterdir() if entry.name in OURS)
        if mine:
            raise ValueError(
                f"{job.out}: holds {mine} and no {MANIFEST}, so they are not known to be ours; remove them"
            )
        return False  # what else lies there stays
    manifest = read_manifest(job.out)
    remedy = "--overwrite true replaces it"
    if manifest["format"] == EARLIER_FORMAT:
        if job.config.overwrite:
            return False
        raise ValueError(f"{job.out}: was prepared by an earlier version, and can be used as it is; {remedy}")
    found = contents(job.files, manifest.get("sources", []), job.threads)
    if job.identity(found) != manifest["job"]:
        if job.config.overwrite:
            return False
        raise ValueError(f"{job.out}: holds a data set prepared from something else; {remedy}")
    try:
        check_files(job.out)
    except ValueError as error:
        if job.config.overwrite:
            return False
        raise ValueError(f"{error}; {remedy}") from None
    work = place_beside(job.out, "preparing")
    if work.exists():
        # Of a run that was killed when the data set was in its place.
        with lock(work):
            shutil.rmtree(work)
    return True


@contextmanager
def work_folder(job: Job) -> Iterator[Path]:
    """The folder of an unfinished preparation. One of the same job is resumed, and any other is deleted.

    It is beside the data set, or in a cache of this machine if the data set is remote.

    Raises:
        ValueError: If another process works in it.
    """
    work = place_beside(job.out, "preparing")
    with lock(work):
        found = contents(job.files, _known(work), job.threads)
        identity = work / "job"
        if not identity.exists() or identity.read_text() != job.identity(found):
            _empty(work)
            write_text(work / _SOURCES, json.dumps([asdict(content) for content in found]))
            write_text(identity, job.identity(found))
        yield work
        shutil.rmtree(work)


def source_contents(work: Path) -> list[Any]:
    """Returns what the source files held when the work began, as JSON."""
    return _known(work)


def part_file(work: Path, number: int, ending: str) -> Path:
    """Returns the path of a file of a parsed piece: ``arrow`` rows, ``rejects``, or ``json`` for its record."""
    return work / "parts" / f"{number:06d}.{ending}"


def read_part(work: Path, number: int, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the rows of a parsed piece."""
    with pa.memory_map(str(part_file(work, number, "arrow"))) as file:
        table = pa.ipc.open_file(file).read_all()
    return table.select(columns) if columns is not None else table


def collect_rejects(work: Path, target: Path) -> None:
    """Writes all rejected rows to one file."""
    found = sorted([*(work / "parts").glob("*.rejects"), *(work / "splits").glob("*.rejects")], key=lambda f: f.name)
    pieces.collect_rejects(found, target)


def check_rejects(job: Job, work: Path, rows: int, rejected: int, unread: int = 0) -> None:
    """Raises ValueError if too many rows were rejected, even if all that may still be unread can be read."""
    if rejected <= job.config.max_rejects * (rows + rejected + unread):
        return
    collected = job.out.with_name(f"{job.out.name}.{REJECTS}")
    collect_rejects(work, collected)
    with collected.open() as file:
        first = json.loads(file.readline())
    texts = [source for source in job.files if source.kind == "text" and redact(source.uri) == first["file"]]
    remedies = "".join(f"; {guess}" for source in texts[:1] for guess in guesses(source, job.reading.text_format))
    raise ValueError(
        f"{rejected} of {rows + rejected} rows were rejected, more than max_rejects {job.config.max_rejects} allows"
        f"{f' of these and the {unread:,} or fewer rows that are still unread' if unread else ''}; "
        f"the first is {first['file']}, line {first['line']}: {first['reason']}{remedies}; "
        f"{'those so far' if unread else 'all'} are in {collected}"
    )


def _empty(work: Path) -> None:
    """Removes everything but the lock, which is held."""
    for entry in work.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def _known(work: Path) -> list[Any]:
    try:
        known = json.loads((work / _SOURCES).read_text())
    except (OSError, ValueError):
        return []
    return known if isinstance(known, list) else []
