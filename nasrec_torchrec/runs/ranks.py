"""One rank writes for all: an error of that rank is raised on every rank."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from nasrec_torchrec.runs.folder import claim, remove_empty
from nasrec_torchrec.runs.lock import lock

_T = TypeVar("_T")


def on_first_rank(action: Callable[[], _T]) -> _T:
    """Runs a function on rank 0 and returns its result on every rank. This call is collective.

    Raises:
        ValueError: On every rank, if rank 0 raised one.
    """
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = action()
        except ValueError as error:
            outcome[1] = str(error)
    dist.broadcast_object_list(outcome, 0)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    return outcome[0]


@contextmanager
def writing(folder: Path, kind: str, workers: bool = False, drop: Callable[[], None] | None = None) -> Iterator[None]:
    """Holds a folder for the ranks of this process group, to write it in place; collective.

    A job that refuses its input with ValueError before it wrote anything leaves no folder behind.

    Args:
        folder: folder to claim.
        kind: see :func:`~nasrec_torchrec.runs.folder.claim`.
        workers: whether others that say the same may write there too.
        drop: called first, while nobody else writes there, to drop what an earlier start left.

    Raises:
        ValueError: On every rank, if another process writes there, the folder cannot be written, or it is not ours.
    """
    with ExitStack() as stack:

        def begin() -> None:
            if drop is not None:
                with lock(folder):
                    drop()
            stack.enter_context(lock(folder, shared=workers))
            claim(folder, kind, alone=not workers)

        on_first_rank(begin)
        try:
            yield
        except ValueError:
            if dist.get_rank() == 0:
                stack.close()
                remove_empty(folder)
            raise
