"""The training loop, the same for NASRecNet, SuperNet and TorchRec's DLRM."""

import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nasrec_torchrec.datasets.names import safe_name
from nasrec_torchrec.datasets.reader import ClickFiles, TrainingReader
from nasrec_torchrec.datasets.row_weights import label_shares, mean_weight, row_weights
from nasrec_torchrec.distributed.sharded_model import predict_on_ranks
from nasrec_torchrec.distributed.sharding import describe_plan, parallelize, rank_memory
from nasrec_torchrec.distributed.table_copies import average_copies
from nasrec_torchrec.memory import require_memory
from nasrec_torchrec.metrics.click_metrics import ClickMetrics, block_losses, centered
from nasrec_torchrec.metrics.several_labels import known_rows, labels_metrics
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.modules.table_collection import table_configs, table_weights, tables_of
from nasrec_torchrec.runs import names
from nasrec_torchrec.runs.checkpoint import Checkpoints, read_progress
from nasrec_torchrec.runs.files import atomic_path, write_text
from nasrec_torchrec.runs.fingerprint import require_same
from nasrec_torchrec.runs.log import RunLog
from nasrec_torchrec.runs.ranks import writing
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.dropout import add_dropout
from nasrec_torchrec.training.graphs import graph_dense_part, uses_graphs
from nasrec_torchrec.training.guard import DivergedError, StepGuard
from nasrec_torchrec.training.inputs import inputs_of
from nasrec_torchrec.training.meter import CountedBatches, StepMeter
from nasrec_torchrec.training.paths import paths_of
from nasrec_torchrec.training.precision import check_precision, matmul_precision
from nasrec_torchrec.training.profiling import StepProfiler
from nasrec_torchrec.training.progress import Progress
from nasrec_torchrec.training.schedules import LearningRate
from nasrec_torchrec.training.step import TrainingStep
from nasrec_torchrec.training.table_gradients import TableGradients
from nasrec_torchrec.training.table_settings import table_settings
from nasrec_torchrec.training.task import ClickTask, MicroBatches
from nasrec_torchrec.training.warm_start import WarmStart
from nasrec_torchrec.training.watch import TrainingWatch

Pause: TypeAlias = Callable[[float, ClickMetrics | None], bool]


@dataclass(frozen=True)
class _Session:
    """What one call of :meth:`Trainer.train` reads and writes.

    Args:
        reader: reader of the training split.
        validation: split to measure, or None.
        measured_at: steps after which the split is measured, in addition to the last step of every epoch.
        pause: function that is called after every measurement and after every epoch.
    """

    reader: TrainingReader
    validation: ClickFiles | None
    measured_at: frozenset[int]
    pause: Pause | None
    checkpoints: Checkpoints
    log: RunLog
    watch: TrainingWatch
    profiler: StepProfiler

    def warn(self, step: int, messages: Sequence[str]) -> None:
        """Says what goes wrong; a race, which expects some trials to go wrong, only finds it in the log."""
        self.log.warn(step, messages, aloud=self.pause is None)


class Trainer:
    """Trains one model over the current process group.

    Args:
        description: description of the model to build.
        config: how to train the model.
        run_dir: folder that receives the log, the checkpoints and the metrics.
        device: device of this rank.
        initial: earlier run whose weights are the initial ones, as far as they fit; see
            :mod:`nasrec_torchrec.training.warm_start`. Optimizer states start from scratch.

    Raises:
        ValueError: If options contradict each other, or the tables do not fit into memory.
    """

    def __init__(
        self,
        description: ModelDescription,
        config: TrainConfig,
        run_dir: Path,
        device: torch.device,
        initial: WarmStart | None = None,
    ) -> None:
        self.description = description
        self.config = config
        self.run_dir = run_dir
        self.device = device
        self.progress = Progress()
        self.learning_rate = LearningRate(config)
        self.guard = StepGuard(frozen_tables=config.freeze == "tables")
        self._skipped_in_a_row = 0
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._slow = check_precision(config.precision, device)
        # On the CPU the weights start alike whatever the number of ranks. On CUDA, where the tables may not fit into
        # one host's memory, each rank initialises its own shards; the ranks with the same shard are neighbours.
        shard = self.rank * (config.sharding_group_size or self.world_size) // self.world_size
        torch.manual_seed(config.seed if device.type == "cpu" else config.seed + shard)
        named = {safe_name(table.name): table.embedding_dim for table in description.schema.tables()}
        settings = {} if config.whole_tables else table_settings(config, named, device.type)
        self._state_bytes = {name: of.state_bytes(named[name]) for name, of in settings.items()}
        if device.type == "cpu":
            # The whole tables, and this rank's shards of them with their states, or whole ones with Adam's moments.
            most = max(self._state_bytes.values(), default=0.0)
            state = 12 if config.whole_tables else (4 + most) / self.world_size
            require_memory(description.schema.tables(), 4 + state, rank_memory(device), "weights and optimizer state")
        self.initial, self._copied = initial, list[str]()
        on_host = device.type == "cpu" or initial is not None
        self.model = description.build(torch.device("cpu" if on_host else "meta"))
        tables = tables_of(self.model.sparse_arch.embedding_bag_collection)
        self.paths = paths_of(self.model, tables, config)
        if config.embedding_std is not None:
            for table in table_configs(tables):
                table.init_fn = partial(nn.init.normal_, std=config.embedding_std)
            tables.reset_parameters()
        if initial is not None:
            self._copied = initial.copy_into(self.model, description, config.freeze)
        elif config.freeze is not None:
            raise ValueError(f"freeze: {config.freeze} needs init_from, the earlier run whose weights are kept")
        if config.freeze == "tables" and description.schema.dynamic:
            raise ValueError("freeze: tables cannot be those of dynamic ids, which are given rows as they are read")
        if config.freeze == "interaction":
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_("sparse_arch." in f".{name}")
        most = config.replicate_mib * 2**20 / 4
        weights = table_weights(tables)
        replicated = {name for name, weight in weights.items() if weight.numel() <= most}
        for name in settings.keys() - replicated:
            settings[name].fuse(weights[name], config.adagrad_eps)
        held = not config.whole_tables or config.freeze == "tables"
        if held and config.accumulate == 1:  # otherwise the task asks the guard
            self.model.sparse_arch.register_forward_hook(self.guard.hold)
        if config.dropout:
            add_dropout(self.model, config.dropout)
        if uses_graphs(config, device, self.world_size, not isinstance(self.model, SuperNet)):
            required = config.cuda_graphs is not None
            graph_dense_part(self.model, config.batch_size, device, config.compile, required)
        elif config.compile:
            for name, child in self.model.named_children():
                if name != "sparse_arch":
                    child.compile()
        rates = {name: of.learning_rate / config.learning_rate for name, of in settings.items()}
        micro_batches = None if config.accumulate == 1 else MicroBatches(config.accumulate, self.guard)
        self.task = ClickTask(self.model, device, config.precision, micro_batches)
        self.dmp = parallelize(
            self.task,
            device,
            config.sharding_type,
            config.quantized_comms,
            replicate=config.whole_tables,
            table_memory=config.table_memory,
            replicated=replicated,
            sharding_group_size=config.sharding_group_size,
        )
        self.step = TrainingStep(self.dmp, self.task, self.paths, self.guard, config, self.rank, device, rates)
        self._table_gradients: TableGradients | None = None
        if config.freeze != "tables":
            self._table_gradients = TableGradients(self.dmp, tables, config.whole_tables, device)
        self._steps_seen = 0

    def train(
        self,
        data: ClickFiles,
        validation: ClickFiles | None = None,
        pause: Pause | None = None,
        validate_at: Sequence[float] = (),
    ) -> ClickMetrics | None:
        """Trains for the configured epochs, from the run's newest checkpoint if it has one.

        With a validation split, the model is measured after every epoch, the best weights are kept, and they are
        restored at the end. A supernet keeps its last weights.

        A race of training runs calls this method once for each rung. ``pause`` ends the call, and the next call
        resumes there; it may come from this trainer or from another one with the same folder and configuration, in
        this process or another. The learning rate follows the schedule of the whole run, so that a paused run ends with
        the same weights as an uninterrupted one. ``progress.validations`` holds all measurements so far. Pass the same
        ``validate_at`` to every call.

        Args:
            data: training split.
            validation: split that decides which weights are kept.
            pause: function that every rank calls after every epoch and at each of ``validate_at``, once the checkpoint
                is written, with the number of completed epochs and the last validation metrics. It must return the same
                on all ranks; true pauses the run.
            validate_at: additional points at which to measure the validation split, in epochs, such as ``(0.5, 1.5)``.

        Returns:
            ClickMetrics | None: Validation metrics of the best weights so far.

        Raises:
            ValueError: If the run folder holds a run with other settings, or a split has no rows.
            DivergedError: If too many steps in a row had a non-finite loss or gradient.
            SystemExit: After SIGTERM or Ctrl-C, once a checkpoint is written.
        """
        config = self.config
        cuda = self.device.type == "cuda"
        if validation is None and config.schedule == "plateau":
            raise ValueError("schedule: plateau needs a validation split; a supernet is trained without one")
        if validation is not None and not len(validation):
            raise ValueError("the validation split has no rows, and decides which weights are kept")
        if config.accumulate > config.batch_size // self.world_size:
            raise ValueError(
                f"accumulate: expected at most the {config.batch_size // self.world_size} rows that each of "
                f"{self.world_size} ranks has in a batch of {config.batch_size}, found {config.accumulate}"
            )
        reader = TrainingReader(
            data,
            config.batch_size,
            config.seed,
            self.rank,
            self.world_size,
            background=cuda if config.background_reader is None else config.background_reader,
            pin_memory=cuda,
        )
        self.description.require_fits(data)
        self.description = replace(self.description, dictionaries=data.dictionaries)
        self.task.log_odds_added, self.task.mean_weight = data.log_odds_added, mean_weight(data)
        weights = self.description.schema.loss_weights
        self.task.label_scales = [weight / known for weight, known in zip(weights, label_shares(data), strict=True)]
        if validation is not None:
            self.description.require_fits(validation)
        from_scratch = config.resume == "never"
        self.progress = Progress(total_steps=config.epochs * reader.steps_per_epoch)
        more = {} if self.initial is None else self.initial.inputs()
        self._inputs = inputs_of({"train": data, "validation": validation}, config, self.description, **more)
        with (
            writing(self.run_dir, "training"),
            Checkpoints(
                self.run_dir,
                self.description.to_json(),
                self.dmp,
                self.step.optimizer,
                config.keep_checkpoints,
                replace=from_scratch,
                averaged=None if self.step.average is None else self.step.average.pairs,
            ) as checkpoints,
        ):
            found = None if from_scratch else checkpoints.newest()
            if found is not None:
                self._resume(checkpoints, found, reader)
            elif self.rank == 0 and self._copied:
                print("\n".join(self._copied), file=sys.stderr)
            if self.rank == 0:
                write_text(self.run_dir / names.PLAN, describe_plan(self.dmp, self._state_bytes))
            total = self.progress.total_steps
            watch = TrainingWatch(
                config,
                isinstance(self.model, SuperNet),
                total,
                None if validation is None else validation.counts,
                self.progress.warnings,
            )
            session = _Session(
                reader,
                validation,
                frozenset(math.ceil(epochs * total / config.epochs) for epochs in validate_at),
                pause,
                checkpoints,
                RunLog(self.run_dir, total, self.run_dir.name, self.progress.step, from_scratch, asdict(config)),
                watch,
                StepProfiler(config.profile, self.run_dir / names.PROFILE, self.rank, self.device),
            )
            with session.log, session.profiler, self.guard.request.listening(), matmul_precision(config.precision):
                session.warn(self.progress.step, [*self._slow, *watch.at_start()])
                # Trials say it once for all of them.
                alone = isinstance(self.model, SuperNet)
                session.log.warn(self.progress.step, watch.of_data(data.warnings, data.counts), aloud=alone)
                while not self._ended(reader):
                    if self._train_epoch(session):
                        break
                checkpoints.wait()
                session.log.note("end" if self._ended(reader) else "asked_to_end", self.progress.step)
            best = self.progress.best
            if best is not None and best["step"] != self.progress.step and self._ended(reader):
                checkpoints.load_best()
        return self.progress.best_metrics

    @torch.no_grad()
    def evaluate(self, data: ClickFiles) -> ClickMetrics:
        """Computes exact metrics over all rows of a split, each counted once. This call is collective.

        Raises:
            ValueError: If the rows are not of the preparation that the model was trained on, or there are none.
        """
        return labels_metrics(*self._predict(data), data.schema.labels)

    def _predict(self, data: ClickFiles) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns logits, labels and, if there are some, weights of all rows of a split, in order, on every rank.

        Logits and labels are ``(N,)``, or ``(N, T)`` for several labels.
        """
        self.description.require_fits(data)
        average_copies(self.dmp)
        with nullcontext() if self.step.average is None else self.step.average.in_use():
            predicted = predict_on_ranks(self.dmp, data, 8 * self.config.batch_size, self.device)
        return *predicted, row_weights(data)

    def _ended(self, reader: TrainingReader) -> bool:
        return reader.epoch >= self.config.epochs or self.learning_rate.ended

    def _train_epoch(self, session: _Session) -> bool:
        """Trains to the end of an epoch, and returns whether to pause there or before."""
        progress, step, config = self.progress, self.step, self.config
        labels_of = self.description.schema.labels
        meter = StepMeter(config, self.world_size, self.device, progress.step, labels_of)
        batches = CountedBatches(iter(session.reader))
        left = session.reader.steps_left
        step.start_epoch()
        for done in range(1, left + 1):
            session.profiler.before(progress.step + 1)
            rate = self.learning_rate.at(progress.step, progress.total_steps)
            loss, logits, labels = step.run(progress.step, rate, batches)
            progress.step += 1
            self._steps_seen += 1
            session.log.advance()
            self._count_skipped(session)
            meter.update(loss, logits, labels, self.task.row_weights)
            if progress.step % config.log_every == 0:
                values = meter.read(loss, progress.step, batches.waited())
                norm = float(step.gradient_norm)
                values |= {"gradient_norm": norm, "skipped_steps": progress.skipped_steps}
                session.log.write("train", progress.step, learning_rate=rate, **values)
                session.warn(progress.step, session.watch.after_steps(progress.step, norm, meter.recent_entropy()))
            if done < left and self._between_steps(session, ahead=batches.count - done):
                return True
        next(batches, None)  # lets the reader begin the next epoch
        step.detach()
        metrics, improved = self._validate(session)
        self.learning_rate.end_epoch(improved)
        self._look_at_tables(session)
        self._save(session, best=improved)
        if self._pauses(session, session.reader.epoch, metrics):
            return True
        if self.guard.stop and not self._ended(session.reader):
            self._end(session)
        return False

    def _between_steps(self, session: _Session, ahead: int) -> bool:
        """Does what is due between two steps of an epoch, and returns whether to pause here.

        Args:
            session: session of this call.
            ahead: number of batches that the pipeline has read for the following steps.
        """
        number = self.progress.step
        if number in session.measured_at:
            self.step.detach()
            metrics, best = self._validate(session)
            self._save(session, ahead, best)
            if self._pauses(session, number * self.config.epochs / self.progress.total_steps, metrics):
                return True
            self.step.attach()
        elif self.guard.stop or number % self.config.checkpoint_every == 0:
            self._save(session, ahead)
        if self.guard.stop:
            self._end(session)
        return False

    def _pauses(self, session: _Session, epochs: float, metrics: ClickMetrics | None) -> bool:
        if session.pause is None:
            return False
        session.checkpoints.wait()
        return session.pause(epochs, metrics)

    def _validate(self, session: _Session) -> tuple[ClickMetrics | None, bool]:
        """Returns metrics of the validation split, if there is one, and whether they are the best so far."""
        if session.validation is None:
            return None, False
        predicted = self._predict(session.validation)
        metrics = labels_metrics(*predicted, session.validation.schema.labels)
        session.log.write("validation", self.progress.step, **asdict(metrics))
        session.warn(self.progress.step, session.watch.after_validation(self.progress.step, metrics))
        if metrics.auc is None and self.config.monitor == "auc" and self.rank == 0:
            print(
                f"{self.run_dir}: step {self.progress.step}: the validation split has no AUC, because its labels are "
                "all equal or a prediction is not a number; the log loss decides instead",
                file=sys.stderr,
            )
        deciding = known_rows(*predicted, 0)[:3]  # of several labels, the first one decides
        if self.config.monitor == "centered_log_loss" and metrics.centered_log_loss is not None:
            deciding = centered(*deciding), *deciding[1:]
        return metrics, self.progress.record(metrics, self.config.monitor, block_losses(*deciding))

    def _look_at_tables(self, session: _Session) -> None:
        """Says which tables learned nothing in an epoch; of a supernet, whose paths share them, in the whole run."""
        if self._table_gradients is None or (isinstance(self.model, SuperNet) and not self._ended(session.reader)):
            return
        idle = self._table_gradients.none_yet(self._steps_seen, session.reader.steps_per_epoch)
        features = {safe_name(name): found for name, found in self.description.schema.features_by_table().items()}
        columns = {name: [feature.name for feature in features[name]] for name in idle}
        session.warn(self.progress.step, session.watch.after_epoch(self.progress.step, columns))
        if not idle:  # so it stays
            self._table_gradients = None

    def _resume(self, checkpoints: Checkpoints, folder: Path, reader: TrainingReader) -> None:
        """Restores everything that a checkpoint holds. This call is collective."""
        state = read_progress(folder)
        remedy = "choose another folder, or --resume never to start from scratch"
        require_same(self.run_dir, state.get("inputs"), self._inputs, remedy)
        try:
            reader.load_state_dict(state["reader"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / names.PROGRESS}: does not fit the data: {error}") from None
        best = state["best"]
        checkpoints.resume(folder, None if best is None else best["step"])
        for part in (self.progress, self.paths, self.learning_rate):
            part.load_state_dict(state)
        updates = self.progress.step - self.progress.skipped_steps
        # TorchRec's checkpoints leave out this count, by which FBGEMM's Adam and LAMB correct their moments.
        self.dmp.fused_optimizer.set_optimizer_step(updates)
        if self.step.average is not None:
            self.step.average.resume(updates)
        if self.rank == 0:
            step, total = self.progress.step, self.progress.total_steps
            print(f"{self.run_dir}: resumes from step {step} of {total}", file=sys.stderr)

    def _save(self, session: _Session, ahead: int = 0, best: bool = False) -> None:
        state: dict[str, Any] = {"reader": session.reader.state_dict(ahead), "inputs": self._inputs}
        for part in (self.progress, self.paths, self.learning_rate):
            state |= part.state_dict()
        average_copies(self.dmp)
        session.checkpoints.save(self.progress.step, state, best)
        session.log.note("checkpoint", self.progress.step)
        if self.rank == 0 and self.paths.statistics is not None:
            write_text(self.run_dir / names.PATHS, json.dumps(self.paths.statistics.to_json(), indent=2))

    def _end(self, session: _Session) -> NoReturn:
        """Ends the run after a step whose checkpoint is being written, because a signal asked for it."""
        session.checkpoints.wait()
        session.log.note("asked_to_end", self.progress.step)
        if self.rank == 0:
            saved = f"{self.run_dir}: asked to end; step {self.progress.step} is saved"
            print(f"{saved}; run the same command again to resume", file=sys.stderr)
        raise SystemExit(128 + self.guard.stop)

    def _count_skipped(self, session: _Session) -> None:
        """Counts a step that changed nothing, and ends the run if there were too many in a row."""
        self.progress.skipped_steps += self.guard.skip
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if self.guard.skip else 0
        if self._skipped_in_a_row < self.config.max_skipped_steps:
            return
        batch = self.task.batch
        sparse = batch.sparse_features
        tensors = {
            "dense_features": batch.dense_features,
            "ids": sparse.values(),
            "lengths": sparse.lengths(),
            "weights": sparse.weights_or_none(),
            "labels": batch.labels,
            "row_weights": self.task.row_weights,
        }
        file = self.run_dir / names.SKIPPED_BATCH.format(self.rank)
        saved = io.BytesIO()
        torch.save({name: tensor.cpu() for name, tensor in tensors.items() if tensor is not None}, saved)
        with atomic_path(file) as temporary:
            temporary.write_bytes(saved.getbuffer())
        session.log.note("diverged", self.progress.step)
        raise DivergedError(
            f"step {self.progress.step}: the loss or a gradient was not finite in {self._skipped_in_a_row} steps in a "
            f"row; the last batch is in {file}, and the last checkpoint is intact; a lower learning_rate may help"
        )
