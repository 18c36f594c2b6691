"""The training loop, the same for NASRecNet, SuperNet and TorchRec's DLRM."""

import base64
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import torch
import torch.distributed as dist
from torch import nn
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.models.dlrm import DLRMTrain
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from nasrec_torchrec.datasets.reader import ClickFiles, TrainingReader
from nasrec_torchrec.distributed.gather import gather_rows
from nasrec_torchrec.distributed.gradient_sync import average_gradients
from nasrec_torchrec.distributed.sharding import describe_plan, parallelize
from nasrec_torchrec.metrics.click_metrics import ClickMetrics, click_metrics
from nasrec_torchrec.metrics.windowed import windowed_metrics
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.stored import read_description
from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.runs.checkpoint import Checkpoints, kept_checkpoint, latest_checkpoint
from nasrec_torchrec.runs.files import atomic_path, write_text
from nasrec_torchrec.runs.log import RunLog
from nasrec_torchrec.search_space import Strategy
from nasrec_torchrec.training.config import TrainConfig, settings_of
from nasrec_torchrec.training.dropout import add_dropout
from nasrec_torchrec.training.guard import TERMINATED, StepGuard
from nasrec_torchrec.training.optimizers import ActiveSliceAdagrad, adam
from nasrec_torchrec.training.path_statistics import PathStatistics
from nasrec_torchrec.training.profiling import StepProfiler
from nasrec_torchrec.training.schedules import Plateau, cosine_with_warmup, full_path_probability, warmup

EpochHook: TypeAlias = Callable[[int, ClickMetrics | None], bool]


class Trainer:
    """Trains one model over the current process group.

    Args:
        description: the model to build.
        config: how to train it.
        run_dir: receives the log, the checkpoints and the metrics.
        device: this rank's device.

    Raises:
        ValueError: for options that do not go together, or when the tables do not fit.
    """

    def __init__(self, description: ModelDescription, config: TrainConfig, run_dir: Path, device: torch.device) -> None:
        self.description = description
        self.config = config
        self.run_dir = run_dir
        self.device = device
        self.step = 0
        self.skipped_steps = self._skipped_in_a_row = 0
        self.gradient_norm = torch.tensor(0.0)
        self.bytes_reduced = 0
        self.plateau = Plateau(config.patience)
        self.paths = PathStatistics()
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        # On the CPU the weights start alike whatever the number of ranks. On CUDA, where the tables may not fit into
        # one host's memory, each rank initialises its own shards.
        torch.manual_seed(config.seed if device.type == "cpu" else config.seed + self.rank)
        self.model = description.build(torch.device("cpu" if device.type == "cpu" else "meta"))
        if config.embedding_std is not None:
            for table in self.model.sparse_arch.embedding_bag_collection.embedding_bag_configs():
                table.init_fn = partial(nn.init.normal_, std=config.embedding_std)
            self.model.sparse_arch.embedding_bag_collection.reset_parameters()
        self.guard = StepGuard()
        task = DLRMTrain(self.model)
        task.loss_fn = self.guard
        task.register_forward_pre_hook(self._remember)
        self._tables = list(self.model.sparse_arch.embedding_bag_collection.parameters())
        if config.optimizer == "adagrad":
            optimizer_options = {"lr": config.learning_rate, "eps": config.adagrad_eps}
            apply_optimizer_in_backward(torch.optim.Adagrad, self._tables, optimizer_options)
            self.model.sparse_arch.register_forward_hook(self.guard.hold)
        self._batch: Batch | None = None
        if config.dropout:
            add_dropout(self.model, config.dropout)
        self._set_precision()
        self.dmp = parallelize(
            task, device, config.sharding_type, config.quantized_comms, replicate=config.optimizer == "adam"
        )
        dense = dict(in_backward_optimizer_filter(self.dmp.named_parameters()))
        self._dense = list(dense.values())
        self.dense_optimizer = KeyedOptimizerWrapper(dense, self._make_dense_optimizer)
        self.optimizer = CombinedOptimizer([self.dmp.fused_optimizer, self.dense_optimizer])
        # Every rank draws the same paths.
        self._generator = torch.Generator().manual_seed(config.seed)

    def train(
        self, data: ClickFiles, validation: ClickFiles | None = None, pause: EpochHook | None = None
    ) -> ClickMetrics | None:
        """Trains for the configured epochs, from the run's newest checkpoint if it has one.

        With a validation split the model is evaluated after every epoch, and the epoch of the lowest validation log
        loss is kept and restored; a supernet is kept as it ends.

        Args:
            data: rows to train on.
            validation: rows to evaluate on after every epoch.
            pause: called on every rank after every epoch, when its checkpoint is written, with the number of epochs
                that are done and their last validation metrics. Where it returns true, on all ranks alike, the
                training ends for now; another call continues it.

        Returns:
            ClickMetrics | None: on the validation split, of the kept model.

        Raises:
            ValueError: when the run folder holds a run with other settings.
            RuntimeError: when too many steps in a row had a non-finite loss or gradient.
            SystemExit: after SIGTERM, when a checkpoint is written.
        """
        config = self.config
        cuda = self.device.type == "cuda"
        reader = TrainingReader(
            data,
            config.batch_size,
            config.seed,
            self.rank,
            self.world_size,
            background=cuda if config.background_reader is None else config.background_reader,
            pin_memory=cuda,
        )
        if validation is None and config.schedule == "plateau":
            raise ValueError("schedule: plateau needs a validation split; a supernet is trained without one")
        progress: dict[str, Any] = {"total_steps": config.epochs * reader.steps_per_epoch, "best": None}
        with Checkpoints(
            self.run_dir,
            self.description.to_json(),
            self.dmp,
            self.optimizer,
            config.keep_checkpoints,
            config.resume == "never",
        ) as checkpoints:
            found = latest_checkpoint(self.run_dir) if config.resume == "auto" else None
            if found is not None:
                progress = self._resume(checkpoints, found, reader)
            if self.rank == 0:
                write_text(self.run_dir / "config.json", json.dumps(asdict(config), indent=2))
                write_text(self.run_dir / "plan.txt", describe_plan(self.dmp))
            anew = config.resume == "never"
            log = RunLog(self.run_dir, progress["total_steps"], self.run_dir.name, self.step, anew)
            self._profiler = StepProfiler(config.profile, self.run_dir / "profile", self.rank, self.device)
            with log, self._profiler, self.guard.termination():
                while reader.epoch < config.epochs and not self._ended():
                    self._train_epoch(reader, progress, checkpoints, log)
                    best, metrics = False, None
                    if validation is not None:
                        metrics = self.evaluate(validation)
                        log.write("validation", self.step, **asdict(metrics))
                        best = progress["best"] is None or self._better(metrics, progress["best"])
                        progress["best"] = asdict(metrics) | {"step": self.step} if best else progress["best"]
                        self.plateau.see(best)
                    self._save(checkpoints, log, reader, progress, best=best)
                    if pause is not None:
                        checkpoints.wait()
                        if pause(reader.epoch, metrics):
                            break
                    if self.guard.stop and reader.epoch < config.epochs and not self._ended():
                        self._end(checkpoints, log)
                checkpoints.wait()
                log.note("end", self.step)
            if progress["best"] is None:
                return None
            if progress["best"]["step"] != self.step:
                checkpoints.load(kept_checkpoint(self.run_dir))
        return ClickMetrics(**{name: value for name, value in progress["best"].items() if name != "step"})

    def _ended(self) -> bool:
        return self.config.schedule == "plateau" and self.plateau.ended

    def _better(self, metrics: ClickMetrics, best: dict[str, Any]) -> bool:
        name = self.config.monitor
        sign = 1 if name == "auc" else -1
        return sign * getattr(metrics, name) > sign * best[name]

    def _resume(self, checkpoints: Checkpoints, folder: Path, reader: TrainingReader) -> dict[str, Any]:
        """Restores everything that a checkpoint holds; collective."""
        file = folder / "progress.json"
        try:
            progress: dict[str, Any] = json.loads(file.read_text())
            theirs, mine = progress["config"], settings_of(self.config)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{file}: cannot be read: {error}") from None
        other = [name for name in mine if mine[name] != theirs.get(name)]
        if other or read_description(folder) != self.description:
            differing = [f"{name} {theirs.get(name)} there, {mine[name]} here" for name in other] or ["another model"]
            raise ValueError(
                f"{self.run_dir}: holds a run with other settings ({'; '.join(differing)}); "
                "choose another folder, or --resume never to start anew"
            )
        try:
            reader.load_state_dict(progress["reader"])
        except ValueError as error:
            raise ValueError(f"{self.run_dir}: holds a run on other data: {error}") from None
        progress = checkpoints.load(folder)
        self.step, self.skipped_steps = progress["step"], progress["skipped_steps"]
        self._generator.set_state(
            torch.frombuffer(bytearray(base64.b64decode(progress["paths_drawn"])), dtype=torch.uint8)
        )
        self.paths = PathStatistics.from_json(progress["paths"])
        self.plateau = Plateau(**progress["plateau"])
        if self.rank == 0:
            print(f"{self.run_dir}: goes on from step {self.step} of {progress['total_steps']}", file=sys.stderr)
        return progress

    def _save(
        self,
        checkpoints: Checkpoints,
        log: RunLog,
        reader: TrainingReader,
        progress: dict[str, Any],
        ahead: int = 0,
        best: bool = False,
    ) -> None:
        progress |= {
            "step": self.step,
            "skipped_steps": self.skipped_steps,
            "reader": reader.state_dict(ahead),
            "paths_drawn": base64.b64encode(self._generator.get_state().numpy().tobytes()).decode(),
            "paths": self.paths.to_json(),
            "plateau": asdict(self.plateau),
            "config": settings_of(self.config),
        }
        checkpoints.save(self.step, progress, best)
        log.note("checkpoint", self.step)
        if self.rank == 0 and self.paths.paths:
            write_text(self.run_dir / "paths.json", json.dumps(self.paths.to_json(), indent=2))

    def _end(self, checkpoints: Checkpoints, log: RunLog) -> NoReturn:
        """Ends the run after a step whose checkpoint is being written, as SIGTERM asks for."""
        checkpoints.wait()
        log.note("asked_to_end", self.step)
        if self.rank == 0:
            print(f"{self.run_dir}: asked to end; step {self.step} is saved", file=sys.stderr)
        raise SystemExit(TERMINATED)

    def _train_epoch(
        self, reader: TrainingReader, progress: dict[str, Any], checkpoints: Checkpoints, log: RunLog
    ) -> None:
        config = self.config
        windowed = windowed_metrics(config.batch_size // self.world_size, self.device)
        pipeline = self._make_pipeline()
        self.dmp.train()
        logged_at, logged_step = time.monotonic(), self.step
        total_steps, left = progress["total_steps"], reader.steps_left
        batches = _Counted(iter(reader))
        done = 0
        # One more turn lets the reader go on to the next epoch.
        while True:
            if done < left:
                self._prepare_step(total_steps)
                self._profiler.before(self.step + 1)
            try:
                loss, logits, labels = pipeline.progress(batches)
            except StopIteration:
                break
            done += 1
            self.step += 1
            log.advance()
            self._count_skipped()
            probabilities = logits.float().sigmoid().nan_to_num(0.5)
            windowed.update({"prediction": probabilities, "label": labels, "weight": torch.ones_like(labels)})
            if self.step % config.log_every == 0:
                mean_loss = loss.clone()
                dist.all_reduce(mean_loss)
                now = time.monotonic()
                rows = (self.step - logged_step) * config.batch_size
                log.write(
                    "train",
                    self.step,
                    loss=float(mean_loss) / self.world_size,
                    learning_rate=self._learning_rate(self.step - 1, total_steps),
                    gradient_norm=float(self.gradient_norm),
                    samples_per_second=rows / (now - logged_at),
                    batch_size=config.batch_size,
                    skipped_steps=self.skipped_steps,
                    memory_mib=_peak_memory(self.device) / 2**20,
                    **_window_values(windowed.compute()),
                )
                logged_at, logged_step = now, self.step
            if done < left and (self.guard.stop or self.step % config.checkpoint_every == 0):
                self._save(checkpoints, log, reader, progress, ahead=batches.count - done)
            if done < left and self.guard.stop:
                self._end(checkpoints, log)
        if isinstance(pipeline, TrainPipelineSparseDist):
            pipeline.detach()

    def _make_pipeline(self) -> "TrainPipelineSparseDist[Batch, Any] | TrainPipelineBase[Batch, Any]":
        if self.config.pipeline == "base":
            return TrainPipelineBase(self.dmp, self.optimizer, self.device)
        return TrainPipelineSparseDist(self.dmp, self.optimizer, self.device, execute_all_batches=True)

    def _set_precision(self) -> None:
        if self.config.compile and isinstance(self.model, SuperNet):
            raise ValueError("compile: a supernet's paths change from step to step; only a fixed model is compiled")
        for name, child in self.model.named_children():
            if name == "sparse_arch":
                continue
            if self.config.compile:
                child.compile()
            if self.config.precision == "bf16":
                child.forward = torch.autocast(self.device.type, torch.bfloat16)(child.forward)

    def _remember(self, _: nn.Module, arguments: tuple[Batch, ...]) -> None:
        self._batch = arguments[0]

    def _count_skipped(self) -> None:
        """Counts a step that changed nothing, and ends the run when there are too many in a row."""
        self.skipped_steps += self.guard.skip
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if self.guard.skip else 0
        if self._skipped_in_a_row < self.config.max_skipped_steps:
            return
        assert self._batch is not None
        sparse = self._batch.sparse_features
        tensors = {
            "dense_features": self._batch.dense_features,
            "ids": sparse.values(),
            "lengths": sparse.lengths(),
            "weights": sparse.weights_or_none(),
            "labels": self._batch.labels,
        }
        file = self.run_dir / f"skipped-batch-rank-{self.rank}.pt"
        with atomic_path(file) as temporary:
            torch.save({name: tensor.cpu() for name, tensor in tensors.items() if tensor is not None}, temporary)
        raise RuntimeError(
            f"step {self.step}: the loss or a gradient was not finite in {self._skipped_in_a_row} steps in a row; "
            f"the last batch is in {file}, and the last checkpoint is intact; a lower learning_rate may help"
        )

    @torch.no_grad()
    def evaluate(self, data: ClickFiles) -> ClickMetrics:
        """Exact metrics over all rows of a split, each counted once; collective."""
        self.dmp.eval()
        logits, labels = [], []
        for batch in data.evaluation_batches(8 * self.config.batch_size, self.rank, self.world_size):
            _, (_, batch_logits, batch_labels) = self.dmp(batch.to(self.device))
            logits.append(batch_logits.float())
            labels.append(batch_labels.float())
        gathered = (data.restore(gather_rows(torch.cat(rows))).cpu() for rows in (logits, labels))
        return click_metrics(*gathered)

    def _prepare_step(self, total_steps: int) -> None:
        """Learning rates, what dropout draws and, in a supernet, the path of the coming step."""
        if self.config.dropout:
            # Of the step alone, so that a continued run draws what the undisturbed one drew.
            torch.manual_seed((self.config.seed << 40) + (self.step << 12) + self.rank)
        learning_rate = self._learning_rate(self.step, total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # The tables are updated within backward: they must learn their rate before it.
        self.dmp.fused_optimizer.step()
        if isinstance(self.model, SuperNet):
            full = full_path_probability(self.step, self.config.full_path_steps)
            take_full = float(torch.rand((), generator=self._generator)) < full
            strategy: Strategy = "full" if take_full else self.config.strategy
            architecture = self.model.search_space.sample(self._generator, strategy)
            self.paths.add(architecture)
            self.model.set_architecture(architecture)

    def _learning_rate(self, step: int, total_steps: int) -> float:
        config = self.config
        arguments = step, total_steps, config.learning_rate, config.warmup_fraction, config.min_learning_rate
        if config.schedule == "plateau":
            return self.plateau.factor * warmup(*arguments)
        return cosine_with_warmup(*arguments)

    def _make_dense_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        config = self.config
        optimizer: torch.optim.Optimizer
        if config.optimizer == "adam":
            if isinstance(self.model, SuperNet):
                raise ValueError(
                    "optimizer: a supernet is trained with adagrad, whose steps touch the active path alone"
                )
            optimizer = adam(parameters, self._tables, config.learning_rate, config.embedding_l2)
        elif isinstance(self.model, SuperNet):
            optimizer = ActiveSliceAdagrad(
                parameters, self.model.active_parameters, config.learning_rate, config.adagrad_eps
            )
        else:
            optimizer = torch.optim.Adagrad(parameters, config.learning_rate, eps=config.adagrad_eps)
        optimizer.register_step_pre_hook(lambda *_: self._finish_backward())
        return optimizer

    def _finish_backward(self) -> None:
        trained: list[nn.Parameter] = self._dense
        if isinstance(self.model, SuperNet):
            trained = [view for _, view in self.model.active_parameters()]
        with_gradient = [parameter for parameter in trained if parameter.grad is not None]
        self.bytes_reduced = average_gradients([p.grad for p in with_gradient if p.grad is not None])
        self.gradient_norm = nn.utils.clip_grad_norm_(with_gradient, self.config.gradient_clip)
        self.guard.release(self.gradient_norm)
        if self.guard.skip:
            for parameter in with_gradient:
                parameter.grad = None


def _window_values(computed: dict[str, torch.Tensor]) -> dict[str, float]:
    """The windowed NE and AUC among TorchRec's metrics, under short names."""
    wanted = {"window_ne": "ne", "window_auc": "auc"}
    return {
        short: float(value)
        for name, value in computed.items()
        for suffix, short in wanted.items()
        if name.endswith(f"|{suffix}")
    }


def _peak_memory(device: torch.device) -> int:
    """Bytes that this rank held at most: on the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Counted:
    """Counts what a pipeline takes out of an iterator: it is some batches ahead of the steps."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.count = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self.count += 1
        return batch
