"""Incremental training: one model, trained day after day, and measured on each day before it is trained on it."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from nasrec_torchrec.architecture import Architecture, recorded
from nasrec_torchrec.datasets.prepared import MANIFEST, label_alone, load_schema, open_split
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.splits import SPLITS
from nasrec_torchrec.finite import json_text
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs import names
from nasrec_torchrec.runs.checkpoint import complete_checkpoints
from nasrec_torchrec.runs.files import atomic_path, read_json, read_text, remove, write_text
from nasrec_torchrec.runs.fingerprint import Fingerprint, code_of, digest, fingerprint, require_same
from nasrec_torchrec.runs.folder import promote
from nasrec_torchrec.runs.log import RunLog
from nasrec_torchrec.runs.ranks import writing
from nasrec_torchrec.runs.record import COMMAND
from nasrec_torchrec.table_widths import check_tables
from nasrec_torchrec.training.config import RecipeName, TrainConfig, TrainFlags, settings_of
from nasrec_torchrec.training.progressive_figure import draw_days
from nasrec_torchrec.training.recipes import fitted, paper
from nasrec_torchrec.training.trainer import Trainer
from nasrec_torchrec.training.warm_start import WarmStart

_REMEDY = "choose another folder (--init_from continues with its weights), or --resume never to start from scratch"


@dataclass
class Day:
    """What is known of a day.

    Args:
        day: name of its folder.
        manifest: checksum of its manifest, which holds the checksums of its files.
        rows: number of its rows.
        progressive: metrics on the day's rows of the model of the day before; None on the first day.
        training_seconds: how long it was trained on; None until that is done.
    """

    day: str
    manifest: str
    rows: int
    progressive: dict[str, Any] | None = None
    training_seconds: float | None = None


@dataclass
class Days:
    """The content of ``results.json``.

    Args:
        inputs: what every day of the run must share.
        settings: how each day is trained.
        days: the days in order; all but the last are finished.
    """

    inputs: Fingerprint
    settings: dict[str, Any]
    days: list[Day]


@dataclass(frozen=True)
class IncrementalTraining:
    """A model that is trained on one folder of prepared data after another.

    Args:
        data: folder of the days' folders, whose names sort by date.
        out: run folder.
        interaction: the model.
        use_layernorm: see :class:`ModelDescription`.
        embedding_dim: embedding dimension of all tables; None for that of each day's schema.
        drop_features: features that the model does not read.
        flags: how each day is trained; what is open follows from the first day.
        recipe: what decides the settings that are open.
        initial: earlier run whose weights the first day begins with, and the folder of its data.
        from_scratch: whether every day's model is trained from scratch, on the rows of that day alone.
    """

    data: Path
    out: Path
    interaction: Architecture | Baseline
    use_layernorm: bool
    embedding_dim: int | None
    drop_features: tuple[str, ...]
    flags: TrainFlags
    recipe: RecipeName
    initial: tuple[Path, Path | None] | None
    from_scratch: bool

    def run(self, device: torch.device) -> dict[str, Any] | None:
        """Measures and trains every day that is not finished yet. This call is collective.

        Returns:
            The content of ``results.json``, on rank 0; None elsewhere.

        Raises:
            ValueError: If the days or the settings are not usable, or the folder holds another run.
        """
        folders = days_under(self.data)
        with writing(self.out, "incremental"):
            if self.flags.resume == "never" and dist.get_rank() == 0:
                (self.out / names.RESULTS).unlink(missing_ok=True)
                remove(self.out / names.DAYS)
            dist.barrier()
            state = self._state(folders)
            begun = [day.day for day in state.days]
            for folder in folders:
                if begun and folder.name < begun[-1] and folder.name not in begun:
                    raise ValueError(f"{folder}: a later day, {begun[-1]}, was trained on already; {_REMEDY}")
            config = TrainConfig(**state.settings)
            if (note := label_alone(folders[-1])) and dist.get_rank() == 0:
                print(note, file=sys.stderr)
            done = [day.day for day in state.days if day.training_seconds is not None]
            log = RunLog(self.out, len(folders), self.out.name, len(done), settings=asdict(config))
            with log:
                for folder in folders:
                    if folder.name in done:
                        self._check_unchanged(folder, state)
                    else:
                        self._one_day(folder, config, state, log, device)
                    done = [*done, folder.name]
                self._promote(state)
                log.note("end", len(state.days))
        return json.loads(json_text(asdict(state))) if dist.get_rank() == 0 else None

    def _one_day(self, folder: Path, config: TrainConfig, state: Days, log: RunLog, device: torch.device) -> None:
        rows = self._rows(folder)
        schema = load_schema(folder, self.embedding_dim)
        if isinstance(self.interaction, Architecture):
            check_tables(dict(self.interaction.embedding_widths), schema.table_names)
        description = ModelDescription(schema.without(self.drop_features), self.interaction, self.use_layernorm)
        if not state.days or state.days[-1].day != folder.name:
            self._promote(state)
            state.days.append(Day(folder.name, digest(read_text(folder / MANIFEST)), len(rows)))
        self._check_unchanged(folder, state)
        day, number = state.days[-1], len(state.days)
        initial = self._initial(folder, state)
        run_dir = self.out / names.DAYS / folder.name
        trainer: Trainer | None = None
        if initial is not None and day.progressive is None:
            trainer = Trainer(description, config, run_dir, device, initial)
            day.progressive = asdict(trainer.evaluate(rows))
            self._write(state)
        if day.progressive is not None:
            measured = {name: day.progressive[name] for name in ("auc", "log_loss", "normalized_entropy", "rows")}
            log.write("progressive", number, **measured)
            if dist.get_rank() == 0:
                print(f"{self.out.name}: {folder.name}: before training: {_metrics(day.progressive)}", file=sys.stderr)
        if trainer is None or self.from_scratch:
            del trainer  # its tables, before there are others
            trainer = Trainer(description, config, run_dir, device, None if self.from_scratch else initial)
        started = time.perf_counter()
        trainer.train(rows)
        day.training_seconds = round(time.perf_counter() - started, 2)
        self._write(state)
        self._promote(state)
        log.advance()

    def _initial(self, folder: Path, state: Days) -> WarmStart | None:
        """Returns the weights that a day is measured with and begins with."""
        if len(state.days) > 1:
            return WarmStart(self.out, folder, self.data / state.days[-2].day, unknown_rows=True)
        if self.initial is None:
            return None
        run, data = self.initial
        return WarmStart(run, folder, data, unknown_rows=True)

    def _rows(self, folder: Path) -> ClickFiles:
        """Returns all rows of a day: the next day is what the model is measured on."""
        train, *others = (open_split(folder, split).without(self.drop_features) for split in SPLITS)
        for other in others:
            if len(other):
                train = train.followed_by(other)
        return train

    def _state(self, folders: Sequence[Path]) -> Days:
        file = self.out / names.RESULTS
        found = read_json(file, Days, "remove it to train again") if file.exists() else None
        if found is None:
            rows = self._rows(folders[0])
            config, reason = paper(self.flags), ""
            if self.recipe == "fitted":
                flags = replace(self.flags, epochs=self.flags.epochs or 1)
                config, reason = fitted(flags, len(rows), rows.schema, dist.get_world_size())
            if reason and dist.get_rank() == 0:
                print(reason, file=sys.stderr)
            if config.schedule == "plateau":
                raise ValueError("schedule: plateau needs a validation split; a day is trained on as a whole")
            return Days(self._inputs(config), asdict(config), [])
        # What the flags leave open was decided by the first day, which may be gone.
        given = {name: value for name, value in asdict(self.flags).items() if value is not None}
        known = {
            field.name: found.settings[field.name] for field in fields(TrainConfig) if field.name in found.settings
        }
        config = TrainConfig(**known | given)
        require_same(self.out, found.inputs, self._inputs(config), _REMEDY)
        return Days(found.inputs, asdict(config), found.days)

    def _inputs(self, config: TrainConfig) -> Fingerprint:
        return fingerprint(
            model={
                "kind": type(self.interaction).__name__,
                "interaction": digest(repr(recorded(self.interaction))),
                "use_layernorm": self.use_layernorm,
            },
            embedding_dim=self.embedding_dim,
            drop_features=sorted(self.drop_features),
            from_scratch=self.from_scratch,
            settings=settings_of(config),
            code=code_of(COMMAND.plugins),
            init_from=None if self.initial is None else str(self.initial[0]),
        )

    def _check_unchanged(self, folder: Path, state: Days) -> None:
        known = next(day for day in state.days if day.day == folder.name)
        if known.manifest != digest(read_text(folder / MANIFEST)):
            raise ValueError(f"{folder}: holds other rows than those that this run read; {_REMEDY}")

    def _write(self, state: Days) -> None:
        if dist.get_rank() != 0:
            return
        write_text(self.out / names.RESULTS, json_text(asdict(state), indent=2))
        measured = [(day.day, day.progressive) for day in state.days if day.progressive is not None]
        if measured:
            with atomic_path(self.out / names.PROGRESSIVE) as temporary:
                temporary.write_bytes(draw_days(measured))

    def _promote(self, state: Days) -> None:
        """Makes the last finished day's model the one of the run; it can be repeated after a kill."""
        if dist.get_rank() == 0 and state.days and state.days[-1].training_seconds is not None:
            folder = self.out / names.DAYS / state.days[-1].day
            if complete_checkpoints(folder):
                promote(folder, self.out)
        dist.barrier()


def days_under(data: Path) -> list[Path]:
    """Returns the folders of prepared data in a folder, one a day, sorted by name.

    Raises:
        ValueError: If there is none, one holds no prepared data, or their names do not sort by date.
    """
    folders = sorted(file.parent for file in data.glob(f"*/{MANIFEST}"))
    others = [folder for folder in data.glob("[!.]*") if folder.is_dir() and folder not in folders]
    if others or not folders:
        found = f"found {min(others).name}/, which holds none" if others else "found none"
        raise ValueError(f"{data}: expected folders of prepared data, one for each day, such as 2026-11-01/; {found}")
    if lengths := {len(folder.name) for folder in folders} - {len(folders[0].name)}:
        other = next(folder.name for folder in folders if len(folder.name) in lengths)
        raise ValueError(
            f"{data}: expected names of days that sort by date, all of the same length, such as 2026-11-01; found "
            f"{folders[0].name} and {other}"
        )
    return folders


def _metrics(measured: dict[str, Any]) -> str:
    shown = {"AUC": "auc", "log loss": "log_loss", "normalized entropy": "normalized_entropy"}
    values = {label: measured[name] for label, name in shown.items()}
    texts = [f"{label} {'undefined' if value is None else f'{value:.5f}'}" for label, value in values.items()]
    return f"{', '.join(texts)}, {measured['rows']:,} rows"
