"""Ownership of folders: what a program may overwrite and remove, and how one folder replaces another.

A marker file says that we wrote a folder, and which of its files. Only those are ever removed or replaced. A folder is
written in one of two ways:

- *in place*, file by file (a training, a search): :func:`claim` it first; the names in :data:`IN_PLACE` are ours;
- *as a whole* (a package, a data set): call :func:`check_replaceable`, fill a folder beside it, and call
  :func:`replace_folder`.
"""

import json
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from nasrec_torchrec.runs import names
from nasrec_torchrec.runs.files import is_temporary, move, read_text, remove, remove_leftovers, upload, walk, write_text
from nasrec_torchrec.runs.paths import is_remote

_FORMAT = "nasrec-torchrec/folder/1"
# What a program writes into a folder of each kind, as patterns of paths; * stands for anything, also for slashes.
IN_PLACE: dict[str, tuple[str, ...]] = {
    "training": (
        *(
            names.CONFIG,
            names.LOG,
            names.PLAN,
            names.PATHS,
            names.RESULT,
            names.METRICS,
            names.SKIPPED_BATCH.format("*"),
            names.SOFT_LABELS,
            str(PurePosixPath(names.SOFT_LABELS).with_suffix(".json")),
        ),
        *(f"{names.TENSORBOARD}/events.out.tfevents.*", f"{names.PROFILE}/*"),
        *(f"{names.CHECKPOINTS}/{names.BEST}", f"{names.CHECKPOINTS}/step-????????/*"),
    ),
    "incremental": (
        *(names.CONFIG, names.LOG, names.PLAN, names.RESULTS, names.PROGRESSIVE, f"{names.DAYS}/*"),
        f"{names.TENSORBOARD}/events.out.tfevents.*",
        *(f"{names.CHECKPOINTS}/{names.BEST}", f"{names.CHECKPOINTS}/step-????????/*"),
    ),
    "search": (
        *(names.CONFIG, names.JOURNAL, names.CANDIDATES, names.RESULTS, names.PICTURE, names.REPORT, names.FINALISTS),
        *(f"{names.ARCHITECTURES}/{kind}-??.{ending}" for kind in ("rank", "front") for ending in ("json", "svg")),
    ),
    "race": (
        *(names.CONFIG, names.LOG, names.PLAN, names.RESULTS, names.REPORT),
        *(
            f"{names.RACE_JOURNAL}*",
            f"{names.RACE_TRIALS}/????/*",
            f"{names.RACE_TRIALS}/{names.RACE_FINAL}/*",
            f"{names.RACE_TEACHERS}/*",
            f"{names.RACE_DATA}/*",
            f"{names.RACE_DATA}-*",
            f".{names.RACE_DATA}-*",
        ),
        *(f"{tree}/*" for tree in (names.RACE_TREE, names.RACE_TREE_BESIDE)),
        *(f"{names.CHECKPOINTS}/{names.BEST}", f"{names.CHECKPOINTS}/step-????????/*"),
    ),
}


def claim(folder: Path, kind: str, alone: bool = True) -> None:
    """Marks a folder as one that this program writes in place. The caller must hold its lock.

    The folder may hold files that this program never writes; they stay. Half-written files of killed processes are
    removed.

    Args:
        folder: folder to claim; created if it does not exist.
        kind: one of :data:`IN_PLACE`.
        alone: whether no other process writes there; otherwise half-written files stay, and no lock is needed.

    Raises:
        ValueError: If it is marked as something else, or holds what would be overwritten and was not written by us.
    """
    if _owner(folder) == kind:
        if alone:
            remove_leftovers(folder)
        return
    _refuse_other_kind(folder, kind)
    foreign = next((file for file in _files(folder) if _matches(file, IN_PLACE[kind])), None)
    if foreign is not None and _owner(folder) != kind:
        raise ValueError(
            f"{folder}: holds {foreign}, which an earlier version or another program wrote; choose another folder"
        )
    _mark(folder, kind)


def clear(folder: Path, kind: str) -> None:
    """Removes the files that this program wrote into a folder, and the folder if nothing else is in it.

    Raises:
        ValueError: If the folder holds files and is not marked as of this kind.
    """
    check_replaceable(folder, kind)
    for file in _ours(folder):
        (folder / file).unlink(missing_ok=True)
    (folder / names.MARKER).unlink(missing_ok=True)
    remove_empty(folder)


def promote(source: Path, target: Path) -> None:
    """Moves the files of the training to keep up into the folder of all trainings; it can be repeated after a kill.

    Files of an earlier training there are removed, and files of others stay.

    Args:
        source: folder of the training.
        target: folder above it, which must be claimed.
    """
    checkpoints = source / names.CHECKPOINTS
    if checkpoints.exists():
        # Files of others move over first, so that one rename replaces the whole folder.
        for file in list(walk(target / names.CHECKPOINTS)):
            if not _matches(f"{names.CHECKPOINTS}/{file}", IN_PLACE["training"]) and not is_temporary(file):
                move(target / names.CHECKPOINTS / file, checkpoints / file)
        remove(target / names.CHECKPOINTS)
        move(checkpoints, target / names.CHECKPOINTS)
    for name in (names.CONFIG, names.PLAN):
        if (source / name).exists():
            move(source / name, target / name)


def remove_checkpoints(run_dir: Path) -> None:
    """Removes the checkpoints of a training, and nothing else in its folder."""
    folder = run_dir / names.CHECKPOINTS
    for path in folder.glob(names.CHECKPOINT_PATTERN):
        remove(path)
    (folder / names.BEST).unlink(missing_ok=True)
    remove_empty(folder)


def check_replaceable(folder: Path, kind: str) -> None:
    """Checks that a folder may be replaced: it does not exist, it is empty, or this program wrote one of the same kind.

    Raises:
        ValueError: If it may not.
    """
    if folder.is_file():
        raise ValueError(f"{folder}: expected a folder, found a file in its place")
    if _owner(folder) == kind:
        return
    _refuse_other_kind(folder, kind)
    foreign = next(_files(folder), None)
    if foreign is not None:
        raise ValueError(
            f"{folder}: holds {foreign} and is no {kind} that this version wrote; choose another folder, "
            "or remove it yourself"
        )


def replace_folder(source: Path, target: Path, kind: str, last: str) -> None:
    """Replaces a folder by a complete local one. The caller must hold the lock of the source.

    Files in the target that this program did not write stay. If the process is killed in between, :func:`recover`,
    which every start calls, completes or reverts the replacement.

    Args:
        source: complete folder, beside the target unless that is remote. It no longer exists afterwards.
        target: its new path.
        kind: kind of folder that the marker records, such as ``package``.
        last: name of the file by which a folder counts as complete.

    Raises:
        ValueError: If the target may not be replaced, see :func:`check_replaceable`.
    """
    check_replaceable(target, kind)
    files = sorted(set(_files(source)))
    if is_remote(target):
        _upload_folder(source, target, kind, files, last)
        return
    recover(target)
    _mark(source, kind, files)
    if target.exists():
        target.rename(_aside(target))
    source.rename(target)
    recover(target)


def recover(target: Path) -> None:
    """Completes or reverts a :func:`replace_folder` that was killed."""
    if is_remote(target) or not (aside := _aside(target)).exists():
        return
    if not target.exists():
        aside.rename(target)
        return
    for file in _ours(aside):
        (aside / file).unlink(missing_ok=True)
    (aside / names.MARKER).unlink(missing_ok=True)
    for file in list(_files(aside)):
        place = target / file
        while place.exists():
            place = place.with_name(f"{place.name}.kept")
        place.parent.mkdir(parents=True, exist_ok=True)
        (aside / file).rename(place)
    remove_empty(aside)


def remove_empty(folder: Path) -> None:
    """Removes a local folder and those in it as far as they hold nothing but markers, and no process holds them."""
    if is_remote(folder) or not folder.is_dir():
        return
    for place, _, _ in os.walk(folder, topdown=False):
        left = os.listdir(place)
        ours = [name for name in left if name in (names.MARKER, names.LOCK) or is_temporary(name)]
        if len(ours) == len(left) and (Path(place) != folder or names.LOCK not in left):
            for name in ours:
                os.unlink(Path(place) / name)
            os.rmdir(place)


def _upload_folder(source: Path, target: Path, kind: str, files: list[str], last: str) -> None:
    old = _ours(target) if _owner(target) else []
    # A process that is killed from here on leaves a folder that is ours and incomplete.
    (target / last).unlink(missing_ok=True)
    _mark(target, kind, sorted({*old, *files}))
    for file in set(old) - set(files):
        (target / file).unlink(missing_ok=True)
    for file in sorted(files, key=lambda file: file == last):
        upload(source / file, target / file)
    _mark(target, kind, files)
    remove(source)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.replaced")


def _mark(folder: Path, kind: str, files: list[str] | None = None) -> None:
    marker: dict[str, Any] = {"format": _FORMAT, "kind": kind}
    if files is not None:
        marker["files"] = files
    write_text(folder / names.MARKER, json.dumps(marker, indent=2))


def _read_marker(folder: Path) -> dict[str, Any]:
    """Returns the content of the marker; empty if there is none."""
    file = folder / names.MARKER
    if not file.is_file():
        return {}
    try:
        marker = json.loads(read_text(file))
        if marker["format"] != _FORMAT or not isinstance(marker["kind"], str):
            raise ValueError(f"expected {_FORMAT}, found {marker['format']!r}")
        files = marker.get("files", [])
        if not isinstance(files, list) or not all(isinstance(name, str) and _stays_below(name) for name in files):
            raise ValueError("files: expected paths below the folder")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file}: not a marker of this program, so nothing here is touched: {error}") from None
    return marker


def _stays_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.parts)


def _owner(folder: Path) -> str | None:
    return _read_marker(folder).get("kind")


def _refuse_other_kind(folder: Path, kind: str) -> None:
    owner = _owner(folder)
    if owner is not None:
        raise ValueError(f"{folder}: holds a {owner}, expected a {kind} or nothing; choose another folder")


def _ours(folder: Path) -> list[str]:
    """Returns the existing files of a marked folder that this program wrote."""
    marker = _read_marker(folder)
    if "files" in marker:
        return [name for name in marker["files"] if (folder / name).is_file()]
    return [file for file in _files(folder) if _matches(file, IN_PLACE.get(marker.get("kind", ""), ()))]


def _files(folder: Path) -> Iterator[str]:
    """Yields the paths of all files below a folder except markers, locks and leftovers of killed writers."""
    for file in walk(folder):
        name = PurePosixPath(file).name
        if name not in (names.MARKER, names.LOCK) and not is_temporary(name):
            yield file


def _matches(file: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(file, pattern) for pattern in patterns)
