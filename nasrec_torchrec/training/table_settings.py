"""What each table is trained with: a setting of its own, that of all tables, or that of the dense part."""

from collections.abc import Collection
from typing import Any

from nasrec_torchrec.datasets.names import safe_name
from nasrec_torchrec.distributed.fused_optimizers import TableSetting
from nasrec_torchrec.training.config import ALL_TABLES, TrainConfig


def table_settings(config: TrainConfig, tables: Collection[str], device_type: str) -> dict[str, TableSetting]:
    """Returns how each table is trained.

    Args:
        config: how the model is trained.
        tables: names of the tables in the model.
        device_type: where the tables will be, ``cpu`` or ``cuda``.

    Raises:
        ValueError: If a setting names a table that does not exist, or the device has no kernel for it.
    """
    optimizers = _by_table(config, "table_optimizers", tables, config.optimizer)
    rates = _by_table(config, "table_learning_rates", tables, config.learning_rate)
    decays = _by_table(config, "table_weight_decay", tables, 0.0)
    settings = {name: TableSetting(optimizers[name], rates[name], decays[name]) for name in tables}
    for name, setting in settings.items():
        setting.require_kernel(name, device_type)
    return settings


def _by_table(config: TrainConfig, flag: str, tables: Collection[str], otherwise: Any) -> dict[str, Any]:
    given = {name if name == ALL_TABLES else safe_name(name): it for name, it in (getattr(config, flag) or {}).items()}
    if unknown := sorted(given.keys() - {*tables, ALL_TABLES}):
        raise ValueError(
            f"{flag}: there is no table {', '.join(unknown)}; the tables are {', '.join(sorted(tables))}, and "
            f"'{ALL_TABLES}' stands for those that are not named"
        )
    return {name: given.get(name, given.get(ALL_TABLES, otherwise)) for name in tables}
