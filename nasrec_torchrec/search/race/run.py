"""One race from end to end: what ``auto`` does."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from nasrec_torchrec.architecture import Architecture, recorded
from nasrec_torchrec.datasets.prepared import MANIFEST, data_warnings, label_alone, load_schema, open_split, sha256
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.modules.sparse_arch import SparseArch
from nasrec_torchrec.runs import names
from nasrec_torchrec.runs.files import require_local
from nasrec_torchrec.runs.fingerprint import code_of
from nasrec_torchrec.runs.folder import clear, remove_checkpoints
from nasrec_torchrec.runs.ranks import writing
from nasrec_torchrec.runs.record import COMMAND, record_start
from nasrec_torchrec.search.config import Limits
from nasrec_torchrec.search.cost import cost
from nasrec_torchrec.search.cost_values import Cost, Latency
from nasrec_torchrec.search.limits import narrowing, require_reachable
from nasrec_torchrec.search.race import sources
from nasrec_torchrec.search.race.book import Book
from nasrec_torchrec.search.race.chance import eligible
from nasrec_torchrec.search.race.choice import compared, finalists, winner
from nasrec_torchrec.search.race.column_choice import ColumnChoice
from nasrec_torchrec.search.race.config import RaceConfig, RaceSpace
from nasrec_torchrec.search.race.costs import LATENCY_ROWS, measured_costs, step_seconds
from nasrec_torchrec.search.race.finish import finish, read_results
from nasrec_torchrec.search.race.leaderboard import standings, table
from nasrec_torchrec.search.race.planner import KEPT_BESIDE, Continue, Finished, New, Planner
from nasrec_torchrec.search.race.ranks import follow, tell
from nasrec_torchrec.search.race.recipe import recipe_space, starting_recipes
from nasrec_torchrec.search.race.situation import Situation
from nasrec_torchrec.search.race.students import taught
from nasrec_torchrec.search.race.training import RaceData, UnbuildableError, check_final_fit, fit_finally, train_trial
from nasrec_torchrec.search.race.trees import RaceTrees
from nasrec_torchrec.search.race.trial import Entry, trial_folder
from nasrec_torchrec.search.workers import Worker
from nasrec_torchrec.search_space import SearchSpace
from nasrec_torchrec.spans import span
from nasrec_torchrec.table_widths import table_bytes
from nasrec_torchrec.training.drift import deciding_loss, drift
from nasrec_torchrec.training.evaluation import sliced_feature
from nasrec_torchrec.training.guard import DivergedError

# What remains of a budget for the last measurements and the report: so many seconds and what reading the rows takes,
# but at most a share of the budget.
_REPORT_SECONDS, _REPORT_SHARE = 2.0, 0.06
# Whole trainings that a budget should hold, if they are to have as many epochs as are worth it.
_WHOLE_TRAININGS = 14
# Share of the budget that a full training of a proposed architecture may take.
_MOST_SHARE = 0.1
_MOST_EPOCHS, _LEAST_EPOCHS, _COUNTED_EPOCHS = 20, 2, 10
# Of a race in which no trial can be trained.
_MOST_FAILURES = 10
# Seconds that an epoch takes beside its steps, for the checkpoint and the log.
_EPOCH_OVERHEAD = 0.25
_POLL_SECONDS = 0.5


def auto(
    data: Path,
    out: Path,
    config: RaceConfig | None = None,
    space: SearchSpace | None = None,
    limits: Limits | None = None,
    storage: str | None = None,
    resume: Literal["auto", "never"] = "auto",
) -> dict[str, Any] | None:
    """Finds the best model for a prepared data set within a budget; see docs/search.md.

    Recipes, features and architectures race, baselines always among them. Every candidate is really trained and judged
    on the validation split; the test split is read once, at the end. A race that was killed resumes when it is started
    again, and several processes that are started with the same arguments race together.

    Args:
        data: prepared data set.
        out: run folder; receives the study, a folder per trial, ``results.json``, ``report.html``, the data set with
            the added features as ``data/``, and the winner's checkpoint.
        config: how the budget is spent.
        space: search space of random architectures.
        limits: what a proposed architecture may cost.
        storage: where the Optuna study is, as a URL; unset, a journal file in ``out``.
        resume: ``auto`` resumes where an earlier race with the same settings stopped, ``never`` drops it.

    Returns:
        dict | None: the results, on rank 0.

    Raises:
        ValueError: If the settings do not fit the data or the race that ``out`` holds.
    """
    config = config or RaceConfig()
    require_local(out, "out: expected a folder on this machine, since trials are many small files")
    drop = partial(clear, out, "race") if resume == "never" else None
    with process_group() as device, writing(out, "race", workers=True, drop=drop):
        if dist.get_rank() != 0:
            follow(device)
            return None
        why: str | None = None
        try:
            race = _Race(
                data, out, config, space or RaceSpace(), limits or Limits(), storage, device, resume == "never"
            )
            return race.run()
        except (ValueError, OSError) as error:
            why = str(error)
            raise
        finally:
            tell(why)


class _Race:
    """The leader of the ranks of one worker."""

    def __init__(
        self,
        data: Path,
        out: Path,
        config: RaceConfig,
        space: SearchSpace,
        limits: Limits,
        storage: str | None,
        device: torch.device,
        from_scratch: bool,
    ) -> None:
        self.now = time.process_time if config.clock == "cpu" else time.monotonic
        self.started = self.now()
        self.config, self.limits, self.out, self.device = config, limits, out, device
        self.base = load_schema(data)
        self.space = space.for_tables(self.base.table_names)
        if note := label_alone(data):
            self._say(note)
        errors = drift(*(open_split(data, split) for split in ("train", "validation")))
        given = RaceData((data,), self.base, config.monitor or deciding_loss(errors))
        self.rows = {split: len(open_split(data, split)) for split in ("train", "validation")}
        if not all(self.rows.values()):
            raise ValueError(f"{data}: expected rows to train and to validate on, found {self.rows}")
        for column in config.slice:
            sliced_feature(self.base, column)
        if config.final_fit:
            check_final_fit(given)
        if config.monitor is None and given.monitor == "centered_log_loss":
            self._say(
                f"the click rate of the validation rows differs from that of the training rows by {abs(errors):.0f} "
                "standard errors: the log loss with the mean prediction moved to that rate decides (--monitor)"
            )
        self.trees = RaceTrees(config, out, self.base, self.now, self._say)
        described = asdict(config) | {"trees": self.trees.wanted}
        # What may change between a kill and the next start.
        for name in ("budget", "trials", "slice", "quiet"):
            del described[name]
        settings = {"data": sha256(data / MANIFEST), "config": described, "limits": limits.to_dict()}
        if code := code_of(COMMAND.plugins):
            settings["code"] = code
        require_reachable(self.space, limits, self._counted)
        self.book = Book(storage or out / names.RACE_JOURNAL, settings | {"space": recorded(space)}, from_scratch)
        self.before = self.book.seconds()
        self.warnings = data_warnings(data)
        self.book.warn(self.warnings)
        for warning in self.warnings:
            self._say(f"warning: {warning}")
        self.columns = ColumnChoice(given, out, config, self.book, self._say)

    def run(self) -> dict[str, Any]:
        """Races, and returns the results."""
        if (results := read_results(self.out)) is not None:
            self._say(f"{self.out / names.RESULTS}: this race is over; --resume never repeats it")
            return results
        self.origin = {"data": str(self.data.folders[0]), **record_start(self.out)}
        with self.book.worker() as worker:
            self.worker = worker
            self._prepare(worker)
            self.columns.add_buckets()
            self.trees.grow(worker, self.data)
            self._race(worker)
            return self._finish(worker)

    @property
    def data(self) -> RaceData:
        """The data with all columns that were added so far."""
        return self.columns.data

    @property
    def seconds(self) -> float:
        """How long the race has run, earlier processes included."""
        return self.before + self.now() - self.started

    @property
    def seconds_left(self) -> float:
        """Until trainings must end."""
        return self.training_seconds - self.seconds

    def _say(self, text: str) -> None:
        if not self.config.quiet:
            print(text, file=sys.stderr, flush=True)

    def _prepare(self, worker: Worker) -> None:
        """Measures how fast this machine is, and decides how long a full training is."""
        batch_size = starting_recipes(self.base, self.rows["train"], 1)[0].batch_size
        files = open_split(self.data.folders[0], "train")
        self.batch, self.latency_batch = (next(files.evaluation_batches(n)) for n in (batch_size, LATENCY_ROWS))

        require_reachable(self.space, self.limits, self._counted, self._latency)

        def measure() -> list[Any]:
            slowest = 0.0
            cheap = self._step_seconds(sources.cheap_baseline(self.base.embedding_dim))
            for baseline in sources.baselines(self.base.embedding_dim):
                slowest = max(slowest, self._step_seconds(baseline))
            return [cheap, slowest]

        self.most_step = math.inf
        self.training_seconds = self.config.budget_seconds
        epochs = self.config.epochs or _COUNTED_EPOCHS
        if self.config.trials is None:
            cheap_step, slowest_step = self.book.recall(worker, "seconds of a step", measure)
            # A validation row costs about a third of a training row.
            steps = (self.rows["train"] + self.rows["validation"] / 3) / self.batch.labels.numel()
            epoch = steps * cheap_step + _EPOCH_OVERHEAD
            if self.config.epochs is None:
                affordable = self.config.budget_seconds / (_WHOLE_TRAININGS * epoch)
                (epochs,) = self.book.recall(
                    worker, "epochs", lambda: [int(min(_MOST_EPOCHS, max(_LEAST_EPOCHS, affordable)))]
                )
            self._say(
                f"a training step of {self.batch.labels.numel()} rows takes {1e3 * cheap_step:.1f} ms here, an "
                f"epoch about {epoch:.1f} s; a full training has {epochs} epochs"
            )
            # Models that read the validation rows and the test rows, a row at a third of a training's: the winner, two
            # baselines, the fastest, and of the ensemble all that may and all that do belong to it.
            more = (self.config.ensemble > 1) * self.config.finalists, self.config.ensemble - 1
            rows = (4 + more[0]) * self.rows["validation"] + (4 + more[1]) * self.data.rows("test")
            measured = rows / 3 / self.batch.labels.numel() * slowest_step
            reserve = min(_REPORT_SECONDS + measured, _REPORT_SHARE * self.config.budget_seconds)
            self.training_seconds -= reserve
            affordable = _MOST_SHARE * self.config.budget_seconds / (steps * epochs)
            self.most_step = min(self.config.step_limit * slowest_step, max(affordable, cheap_step))
        self.planner = Planner(
            self.config,
            self.space,
            starting_recipes(self.base, self.rows["train"], epochs),
            lambda recipe: recipe_space(self.base, recipe, epochs),
            self.base.embedding_dim,
            self._allowed,
            sources.reference_architectures(self.space, self._sizes),
            narrowing(self.space, self.limits, self.base.tables()),
        )

    def _describe(self, interaction: sources.Interaction) -> ModelDescription:
        return ModelDescription(self.base, interaction)

    def _step_seconds(self, interaction: sources.Interaction, at_most: float = math.inf) -> float:
        return step_seconds(self._describe(interaction), self.batch, self.device, at_most, self.now)

    def _counted(self, architecture: Architecture) -> Cost:
        sparse_arch = ModelDescription(self.base, architecture).build(torch.device("meta")).sparse_arch
        assert isinstance(sparse_arch, SparseArch)
        counted = cost(architecture, *self._sizes, tables=sparse_arch.tables)
        return replace(counted, table_bytes=table_bytes(sparse_arch.configs))

    @property
    def _sizes(self) -> tuple[int, int, int]:
        """The numbers of dense features and of tokens, and the embedding dimension."""
        return len(self.base.dense), len(self.base.sparse), self.base.embedding_dim

    def _latency(self, architecture: Architecture) -> Latency:
        return Latency(measured_costs(self._describe(architecture), self.latency_batch, self.device)["latency_us"], 0.0)

    def _allowed(self, architecture: Architecture) -> bool:
        """Whether a proposed architecture is within the limits, those on measured times included."""
        counted = self._counted(architecture)
        if not self.limits.allow(counted, None):
            return False
        if math.isfinite(limit := self.most_step) and limit < self._step_seconds(architecture, limit):
            return False
        if self.limits.max_latency_us is None:
            return True
        return self.limits.allow(counted, self._latency(architecture))

    def _situation(self, busy: set[int]) -> Situation:
        entries = self.book.entries()
        if self.config.trials is not None:
            left, spent = None, len(entries) / self.config.trials
        else:
            left = self.seconds_left - self._final_seconds(entries)
            spent = self.seconds / self.training_seconds if left > 0 else 1.0
        return Situation(entries, spent, busy, left, **self.columns.proposals())

    def _final_seconds(self, entries: Sequence[Entry]) -> float:
        """Returns what is trained after the race: the best trial once more on all rows, or a tree of its columns."""
        if not (may_win := eligible(entries, self.columns.combinations)):
            return 0.0
        best = min(may_win, key=lambda entry: entry.loss)
        if self.trees.beside(best):
            return self.trees.seconds_beside(best)
        if not self.config.final_fit:
            return 0.0
        return sum(best.seconds[: best.best_epoch]) * (1 + self.rows["validation"] / self.rows["train"])

    def _race(self, worker: Worker) -> None:
        busy: set[int] = set()
        while True:
            situation = self._situation(busy)
            if self.columns.find(worker, situation):
                continue
            action = self.planner.next(situation)
            match action:
                case New(trial):
                    self.book.add(worker, len(situation.entries), trial)
                    continue
                case Continue(entry, until):
                    claim = worker.claim(f"train {entry.number}")
                    if claim is None:
                        busy.add(entry.number)
                        continue
                    try:
                        if self.book.entries()[entry.number] == entry:
                            self._train(entry, until)
                    finally:
                        worker.release(claim)
                case Finished(waiting=True):
                    time.sleep(_POLL_SECONDS)
                case Finished():
                    return
            busy = set()

    def _train(self, entry: Entry, until: int) -> None:
        """A trial up to its next rung."""
        self.book.begin(entry.number, until)
        folder = trial_folder(self.out, entry.number)
        try:
            data = taught(entry.trial, self.data, self.out)
        except ValueError as error:  # a worker has dropped the checkpoint of a teacher
            self._fail(entry, str(error))
            return
        tell((entry.trial, until, data, folder, False))
        out_of_time = False

        def report(epoch: int, loss: float, auc: float, seconds: float) -> bool:
            nonlocal out_of_time
            self.book.record(entry.number, epoch, loss, auc, seconds)
            self.book.spend(self.seconds)
            left = self.seconds_left - self._final_seconds(self.book.entries())
            out_of_time = self.config.trials is None and left < seconds
            return out_of_time or self.planner.status_of(self.book.entries()[entry.number]) == "complete"

        try:
            progress = train_trial(entry.trial, until, data, folder, self.device, report, self.now)
        except (DivergedError, UnbuildableError) as error:
            self._fail(entry, str(error))
            return
        trained = self.book.entries()[entry.number]
        if trained.losses and not trained.measured:
            self._fail(entry, "the validation log loss is not a finite number after any epoch")
            return
        self.book.note(entry.number, block_losses=[round(loss, 7) for loss in progress.best_blocks])
        self._warn(entry, progress.warnings)
        if "latency_us" not in entry.facts:
            description = ModelDescription(self.data.schema(entry.trial), entry.trial.interaction)
            batch = next(self.data.open("validation", entry.trial).evaluation_batches(LATENCY_ROWS))
            self.book.note(entry.number, **measured_costs(description, batch, self.device))
        self.book.settle(entry.number, self.planner.status_of(trained))
        self._clean()
        self._show(trained)

    def _warn(self, entry: Entry, found: Mapping[str, str]) -> None:
        """Records what goes wrong with a trial, and says each kind of warning once."""
        if not found:
            return
        said = {name for other in self.book.entries() for name in other.warnings}
        self.book.note(entry.number, warnings=dict(found))
        for name, message in found.items():
            if name not in said and message not in self.warnings:
                self._say(f"warning: trial {entry.number} ({entry.trial.title}): {message}")

    def _fail(self, entry: Entry, error: str) -> None:
        """Records that a trial cannot continue; the others do, unless nothing suggests that any can be trained."""
        self.book.note(entry.number, error=error.splitlines()[0])
        self.book.settle(entry.number, "failed")
        self._say(f"trial {entry.number} failed: {error}")
        entries = self.book.entries()
        if len(entries) >= _MOST_FAILURES and all(one.status == "failed" for one in entries):
            raise ValueError(f"the first {len(entries)} trials failed, and none was trained; the last one: {error}")

    def _clean(self) -> None:
        """Drops the checkpoints of trials that are complete and far from winning."""
        entries = self.book.entries()
        keep = self.config.finalists + KEPT_BESIDE
        ranked = sorted((entry for entry in entries if entry.measured), key=lambda entry: entry.loss)
        may_win = eligible(ranked, self.columns.combinations)
        named = compared(may_win, self.book.stored(self.out))
        kept = {entry.number for entry in (*ranked[:keep], *may_win[:keep], *named.values())}
        # All seeds of a model that may be repeated are measured at the end.
        repeated = {entry.trial.configuration for entry in finalists(may_win, self.config.finalists)}
        kept |= {entry.number for entry in may_win if entry.trial.configuration in repeated}
        unfinished = [entry for entry in entries if entry.status in ("running", "paused")]
        kept |= {number for entry in unfinished for number in entry.trial.teachers}
        for entry in ranked:
            if entry.status == "complete" and entry.number not in kept and entry.trial.phase != "finals":
                remove_checkpoints(trial_folder(self.out, entry.number))

    def _show(self, entry: Entry) -> None:
        entries = self.book.entries()
        if self.config.trials is None:
            left = f"{span(self.config.budget_seconds - self.seconds)} left of {self.config.budget}"
        else:
            left = f"{len(entries)} of {self.config.trials} trials"
        what = f"trial {entry.number} ({entry.trial.phase}): {entry.loss:.5f} after {entry.epochs} epochs"
        self._say(f"\n{what}; {left}\n{table(standings(entries), 5)}")

    def _finish(self, worker: Worker) -> dict[str, Any]:
        """One worker writes the results; the others wait for them."""
        while self.trees.missing:  # a worker that died may have left it
            self.trees.grow(worker, self.data)
            time.sleep(_POLL_SECONDS)
        while (results := read_results(self.out)) is None:
            claim = worker.claim("finish")
            if claim is None:
                time.sleep(_POLL_SECONDS)
                continue
            try:
                results = read_results(self.out)
                if results is None:
                    if (best := self._winner()) is not None:
                        self.trees.grow_beside(best, self.data)
                    found = self.columns.suspicious(), self.columns.combinations
                    results = finish(
                        *(self.book, self.config, self.data, self.out, self.device, lambda: self.seconds, *found),
                        self._fit_finally(),
                        self.origin,
                    )
                    self.book.close()
            finally:
                worker.release(claim)
            break
        return results

    def _winner(self) -> Entry | None:
        return winner(eligible(self.book.entries(), self.columns.combinations), self.book.stored(self.out))

    def _fit_finally(self) -> Path | None:
        """Trains the winner once more with the validation rows; returns its folder, or None if that is not wanted."""
        best = self._winner() if self.config.final_fit else None
        if best is None:
            return None
        folder = self.out / names.RACE_TRIALS / names.RACE_FINAL
        self._say(f"trial {best.number} is trained once more, with the validation rows too")
        data = taught(best.trial, self.data, self.out)
        tell((best.trial, best.best_epoch, data, folder, True))
        fit_finally(best.trial, best.best_epoch, data, folder, self.device)
        return folder
