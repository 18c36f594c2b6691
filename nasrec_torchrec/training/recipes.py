"""What a training does where nobody said: epochs, batch size, optimizer and the like, from the data at hand."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.table_widths import table_bytes
from nasrec_torchrec.training.config import TrainConfig, TrainFlags
from nasrec_torchrec.training.drift import deciding_loss

# Adam updates whole tables, and every rank holds them: beyond this, tables are trained with Adagrad.
_ADAM_BYTES = 256 << 20
# Strength of the L2 penalty of the embeddings with Adam.
_ADAM_L2 = 1e-2
# Rows beyond which the paper's recipe is the one that was measured: a tenth of Criteo's 45 million and more.
_MANY_ROWS = 5_000_000
# Rows that a training sees in all its epochs, and the most epochs. The best epoch on validation is kept.
_ROWS_SEEN, _MOST_EPOCHS, _SUPERNET_EPOCHS = 1_500_000, 10, 6


def adam_fits(schema: Schema) -> bool:
    """Returns whether the tables are small enough for Adam, whose ranks hold them whole, and all ids are known."""
    return table_bytes(schema.tables()) <= _ADAM_BYTES and not schema.dynamic


def usual_batch_size(rows: int) -> int:
    """Returns a power of two between 128 and 4,096, for about two hundred steps an epoch on small data."""
    return int(2 ** min(12, max(7, round(math.log2(max(1, rows) / 192)))))


def fitted(
    flags: TrainFlags,
    rows: int,
    schema: Schema,
    ranks: int = 1,
    supernet: bool = False,
    rates: Sequence[float] = (),
    drifted: float = 0.0,
) -> tuple[TrainConfig, str]:
    """Fills in what the flags leave open so that it fits the data.

    Args:
        flags: settings of a training; what is set stays as it is.
        rows: number of training rows.
        schema: schema of the data.
        ranks: number of processes among which a batch is divided.
        supernet: whether a supernet is trained, which takes Adagrad.
        rates: learning rates that are tried in place of the one of the flags.
        drifted: standard errors by which the click rate of the validation rows differs, see
            :func:`~nasrec_torchrec.training.drift.drift`.

    Returns:
        The settings, and a line for people that says what was chosen and why; empty if nothing was.
    """
    if isinstance(flags, TrainConfig):
        return flags, ""
    many = rows >= _MANY_ROWS
    optimizer, batch, epochs = flags.optimizer, flags.batch_size, flags.epochs
    rate, penalty, full_path_steps = flags.learning_rate, flags.embedding_l2, flags.full_path_steps
    if optimizer is None:
        # Adam keeps whole tables on every rank, which cannot be sharded; and a learning rate that somebody gave belongs
        # to the optimizer of the paper, the default.
        sharded = flags.sharding_type is not None or flags.quantized_comms != "none"
        sharded |= flags.sharding_group_size is not None
        sharded |= any((flags.table_optimizers, flags.table_learning_rates, flags.table_weight_decay))
        adam = (not (supernet or many or sharded or rates or rate) and adam_fits(schema)) or bool(penalty)
        optimizer = "adam" if adam else "adagrad"
    if batch is None:
        batch = 512 if many or (optimizer == "adagrad" and rows >= 512 * 200) else usual_batch_size(rows)
        while batch > max(1, rows // 8):  # at least a few steps an epoch, however few rows there are
            batch //= 2
        batch = math.ceil(batch / ranks) * ranks
    if epochs is None:
        most = _SUPERNET_EPOCHS if supernet else _MOST_EPOCHS
        epochs = 1 if many else min(most, max(1, round(_ROWS_SEEN / rows)))
    steps = epochs * (rows // batch)
    if rate is None:
        rate = rates[0] if rates else 1e-3 if optimizer == "adam" else 0.12 if many else 0.05
    if penalty is None:
        whole = optimizer == "adam" and not flags.table_optimizers
        penalty = _ADAM_L2 if whole and flags.freeze != "tables" else 0.0
    if full_path_steps is None:
        full_path_steps = min(TrainConfig.full_path_steps, steps // 4) if supernet else 0
    chosen: dict[str, Any] = {
        "optimizer": optimizer,
        "batch_size": batch,
        "epochs": epochs,
        "learning_rate": rate,
        "embedding_l2": penalty,
        "full_path_steps": full_path_steps,
        "monitor": flags.monitor or deciding_loss(drifted),
    }
    config = TrainConfig(**{field.name: getattr(flags, field.name) for field in fields(flags)} | chosen)
    hidden = {"full_path_steps": not supernet, "monitor": config.monitor != "centered_log_loss"}
    shown = [name for name in chosen if not hidden.get(name)]
    if all(getattr(flags, name) is not None for name in shown):
        return config, ""
    parts = [f"{_count(config.epochs, 'epoch')} at batch {config.batch_size:,} = {steps:,} steps"]
    l2 = f", L2 {penalty:g}" if penalty else ""
    parts.append(f"{optimizer}, learning rate {', '.join(f'{tried:g}' for tried in rates or (rate,))}{l2}")
    if supernet:
        parts.append(f"full path decays over {config.full_path_steps:,} steps")
    if flags.monitor is None and config.monitor == "centered_log_loss":
        apart = f"the click rate of the validation rows is {abs(drifted):.0f} standard errors off"
        parts.append(f"{apart}: the log loss with the mean moved to it decides (--monitor)")
    why = f"{rows:,} training rows, {table_bytes(schema.tables()) / 2**20:,.1f} MiB of tables"
    return config, f"{why}: {'; '.join(parts)} (--recipe paper takes the paper's settings)"


def paper(flags: TrainFlags) -> TrainConfig:
    """Fills in what the flags leave open with the paper's settings for Criteo."""
    given = {field.name: getattr(flags, field.name) for field in fields(flags)}
    return TrainConfig(**{name: value for name, value in given.items() if value is not None})


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
