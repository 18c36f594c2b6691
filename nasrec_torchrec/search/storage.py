"""Storages of Optuna studies: a journal file or a database."""

import json
import os
import time
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from nasrec_torchrec.runs.files import require_local
from nasrec_torchrec.runs.paths import to_path
from nasrec_torchrec.runs.redaction import redact

# Seconds between attempts to open a database.
_PAUSES = (0.1, 0.3, 0.6, 1.0)


def open_storage(storage: str | Path | BaseStorage) -> BaseStorage:
    """Opens a storage, and creates a journal file if there is none; one that is open already is returned.

    Raises:
        ValueError: If it cannot be opened.
    """
    if isinstance(storage, BaseStorage):
        return storage
    try:
        if _is_database(str(storage)):
            return _open_database(str(storage))
        path = to_path(storage)
        require_local(path, "expected the URL of a database or the path of a local file")
        path.parent.mkdir(parents=True, exist_ok=True)
        # It is held for milliseconds; one that a killed process left behind expires after this many seconds.
        lock = JournalFileSymlinkLock(str(path), grace_period=5)
        _repair(path, lock)
        return JournalStorage(JournalFileBackend(str(path), lock))
    except (ImportError, ValueError, KeyError, TypeError, OSError, SQLAlchemyError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"storage: {redact(str(storage))} cannot be opened: {reason}") from None


def _is_database(storage: str) -> bool:
    """Returns whether SQLAlchemy reads the location as a URL, and not as the name of a file."""
    try:
        make_url(storage)
    except ArgumentError:
        return False
    return True


def _open_database(url: str) -> BaseStorage:
    for pause in _PAUSES:
        try:
            return optuna.storages.get_storage(url)
        except (IntegrityError, OperationalError, ProgrammingError):
            # Another worker that starts at the same moment creates the same tables.
            time.sleep(pause)
    return optuna.storages.get_storage(url)


def _repair(path: Path, lock: JournalFileSymlinkLock) -> None:
    """Removes the partial line of a process that was killed while writing; the next line would be appended to it.

    Raises:
        ValueError: If the file is not a journal.
    """
    if not path.exists() or not path.stat().st_size:
        return
    if not path.read_bytes().endswith(b"\n"):
        lock.acquire()
        try:
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
        finally:
            lock.release()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                known = "op_code" in json.loads(line)
            except ValueError:
                known = False
            if not known and line.endswith(b"\n"):
                raise ValueError(f"line {number} is not an entry of an Optuna journal")
