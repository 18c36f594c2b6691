"""How the workers of one search agree, through its storage, on what to evaluate next and who evaluates it."""

import fcntl
import json
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

# A worker without a heartbeat for this long is presumed dead. One that died on this machine is detected at once.
LEASE_SECONDS = 60.0


class Worker:
    """One of the processes that search a study, used as a context manager.

    Every message is a trial of a second Optuna study beside that of the candidates. Storages number trials
    consecutively, so that all workers agree which of several batches or claims was the first.

    - A *batch* is a list of candidates. All workers evaluate the first batch that is proposed under a key.
    - A *claim* says that a worker evaluates a candidate. Of several claims, the first one with a live worker counts.

    Args:
        storage: storage that all workers share.
        name: name of the second study.
        lease: seconds without a heartbeat after which a worker on another machine is presumed dead.
    """

    def __init__(self, storage: BaseStorage, name: str, lease: float = LEASE_SECONDS) -> None:
        self._storage, self._lease = storage, lease
        self._study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True)
        self._id = uuid.uuid4().hex
        self._seen_alive: dict[str, tuple[int, float]] = {}
        self._stopped = threading.Event()
        self._lock_file: IO[str] | None = None

    def __enter__(self) -> "Worker":
        self._lock_file = _lock_path(self._id).open("w")
        fcntl.flock(self._lock_file, fcntl.LOCK_EX)
        self._registration = self._add(worker=self._id, beats=0)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        self._storage.set_trial_state_values(self._registration, TrialState.COMPLETE, [0.0])
        assert self._lock_file is not None
        self._lock_file.close()
        _lock_path(self._id).unlink(missing_ok=True)

    def agree(self, key: str, propose: Callable[[], list[Any]], **facts: Any) -> list[Any]:
        """Returns the JSON values that were proposed first under ``key``, those of ``propose`` if there are none.

        Args:
            key: what they are proposed as.
            propose: returns this worker's proposal.
            facts: further JSON values to store with it.
        """
        if (found := self._batch(key)) is None:
            # Each in a value of its own, because MySQL stores at most 64 KB in one.
            self._add(batch=key, **{f"member{index}": member for index, member in enumerate(propose())}, **facts)
            found = self._batch(key)
            assert found is not None
        return found

    def batches(self, prefix: str) -> dict[int, list[Any]]:
        """Returns what was agreed on under all keys that are ``prefix`` and a number."""
        found: dict[int, list[Any]] = {}
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            key = trial.user_attrs.get("batch", "")
            if key.startswith(prefix):
                found.setdefault(int(key.removeprefix(prefix)), _members(trial))
        return found

    def claimed(self) -> set[str]:
        """Returns what live workers claim."""
        claims, workers = self._running()
        alive = {worker for worker in {trial.user_attrs["by"] for trial in claims} if self._alive(worker, workers)}
        return {trial.user_attrs["claim"] for trial in claims if trial.user_attrs["by"] in alive}

    def claim(self, candidate: str) -> int | None:
        """Returns a number to pass to :meth:`release`, or None if another live worker evaluates the candidate."""
        if self._claimed_before(candidate, None):
            return None
        mine = self._add(claim=candidate, by=self._id)
        if self._claimed_before(candidate, mine):
            self.release(mine)
            return None
        return mine

    def release(self, claim: int) -> None:
        """Ends a claim once its candidate is recorded or abandoned."""
        self._storage.set_trial_state_values(claim, TrialState.COMPLETE, [0.0])

    def count(self) -> int:
        """Returns the number of workers that are alive, of which this is one."""
        _, workers = self._running()
        return max(1, sum(self._alive(worker, workers) for worker in workers))

    def _batch(self, key: str) -> list[Any] | None:
        for trial in self._study.get_trials(deepcopy=False):
            if trial.user_attrs.get("batch") == key:
                return _members(trial)
        return None

    def _claimed_before(self, candidate: str, mine: int | None) -> bool:
        claims, workers = self._running()
        for trial in claims:
            if trial._trial_id == mine:
                return False
            if trial.user_attrs["claim"] == candidate and self._alive(trial.user_attrs["by"], workers):
                return True
        return False

    def _running(self) -> tuple[list[FrozenTrial], dict[str, FrozenTrial]]:
        """Returns the claims in the order in which they were made, and the workers by their names."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        workers = {trial.user_attrs["worker"]: trial for trial in running if "worker" in trial.user_attrs}
        return [trial for trial in running if "claim" in trial.user_attrs], workers

    def _alive(self, worker: str, workers: dict[str, FrozenTrial]) -> bool:
        if worker not in workers:
            return False
        if died_here(worker):
            # From now on all workers know it, and its lock is no longer needed.
            with suppress(UpdateFinishedTrialError):
                self._storage.set_trial_state_values(workers[worker]._trial_id, TrialState.FAIL)
            _lock_path(worker).unlink(missing_ok=True)
            return False
        beats = workers[worker].user_attrs["beats"]
        # Only changes matter, since the clocks of several machines may differ.
        now = time.monotonic()
        last, since = self._seen_alive.get(worker, (-1, now))
        if beats != last:
            since = now
        self._seen_alive[worker] = beats, since
        return now - since < self._lease

    def _beat(self) -> None:
        beats = 0
        while not self._stopped.wait(self._lease / 6):
            beats += 1
            self._storage.set_trial_user_attr(self._registration, "beats", beats)

    def _add(self, **attributes: Any) -> int:
        # In the form that JSON gives them, whatever the storage does with them.
        attributes = json.loads(json.dumps(attributes))
        state = TrialState.COMPLETE if "batch" in attributes else TrialState.RUNNING
        value = 0.0 if state is TrialState.COMPLETE else None
        trial = create_trial(state=state, value=value, user_attrs=attributes)
        return self._storage.create_new_trial(self._study._study_id, template_trial=trial)


def _members(batch: FrozenTrial) -> list[Any]:
    members = sum(name.startswith("member") for name in batch.user_attrs)
    return [batch.user_attrs[f"member{index}"] for index in range(members)]


def _lock_path(worker: str) -> Path:
    return Path(tempfile.gettempdir()) / f"nasrec-worker-{worker}.lock"


def died_here(worker: str) -> bool:
    """Returns whether the worker ran on this machine and no longer holds the lock that it holds while it lives."""
    try:
        with _lock_path(worker).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:  # no such file, or it is held
        return False
