"""Storages of Optuna studies: a journal file or a database."""

import json
import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from nasrec_torchrec.runs.files import require_local
from nasrec_torchrec.runs.paths import to_path
from nasrec_torchrec.runs.redaction import redact

# A study with this behind its name is how the workers of a study agree who does what.
WORKERS = ".workers"
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


def open_study(
    storage: BaseStorage, name: str, settings: dict[str, Any], minimized: Sequence[str], from_scratch: bool = False
) -> tuple[optuna.Study, list[str]]:
    """Opens a study, and creates it if there is none.

    Args:
        storage: its storage.
        name: its name; what its workers agree on is a second study, see :data:`WORKERS`.
        settings: JSON values that all its trials must share for their values to be comparable.
        minimized: names of the values of a trial, which Optuna's dashboard shows.
        from_scratch: whether to delete both studies first.

    Returns:
        The study, and the names of the settings that differ from those that it was created with.
    """
    if from_scratch:
        for old in {name, name + WORKERS} & set(optuna.get_all_study_names(storage)):
            optuna.delete_study(study_name=old, storage=storage)
    study = optuna.create_study(
        study_name=name, storage=storage, directions=["minimize"] * len(minimized), load_if_exists=True
    )
    settings = json.loads(json.dumps(settings))
    theirs = study.user_attrs.get("settings")
    if theirs is None:
        study.set_user_attr("settings", settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(minimized))
        return study, []
    return study, sorted(key for key in settings.keys() | theirs.keys() if settings.get(key) != theirs.get(key))


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
