"""The settings of exporting, scoring and serving; importing them needs no PyTorch."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

TablePrecision = Literal["fp32", "fp16", "int8", "int4"]


@dataclass(frozen=True)
class ExportConfig:
    """How a model is exported.

    Args:
        tables: precision of the embedding tables: fp32, fp16, int8 or int4 (4 more bytes a row for a scale and a bias).
            Only a package whose tables are all fp32 does without FBGEMM.
        table_precisions: precision of some tables, by name.
        dense: precision of the dense part.
        device: device to compile for; cuda needs such a device on this machine.
        simd_bits: width of the vector instructions; unset, the widest of this machine. 256 runs wherever AVX2 does.

    Raises:
        ValueError: for an unknown precision or device.
    """

    tables: TablePrecision = "fp32"
    table_precisions: dict[str, TablePrecision] = field(default_factory=dict)
    dense: Literal["fp32", "bf16"] = "fp32"
    device: Literal["cpu", "cuda"] = "cpu"
    simd_bits: int | None = None

    def __post_init__(self) -> None:
        choices = {"tables": get_args(TablePrecision), "dense": ("fp32", "bf16"), "device": ("cpu", "cuda")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {list(allowed)}, found {getattr(self, name)!r}")
        if self.simd_bits not in (None, 128, 256, 512):
            raise ValueError(f"simd_bits: expected 128, 256 or 512, found {self.simd_bits!r}")


@dataclass(frozen=True)
class ScoringConfig:
    """How files are scored.

    Args:
        raw: the files hold raw columns, to be transformed as the training data were; else prepared ones.
        keep: columns of the files to copy beside the scores, such as a request's id; unset, the label where there is
            one.
        batch_size: rows of a forward pass.
        piece_mib: MiB of text, or 8,192 Parquet rows for each, that become one file of scores.
        overwrite: replace scores of something else at the same place.
    """

    raw: bool = False
    keep: tuple[str, ...] = ()
    batch_size: int = 4096
    piece_mib: int = 32
    overwrite: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", tuple(self.keep))
        for name in ("batch_size", "piece_mib"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive number, found {getattr(self, name)}")


@dataclass(frozen=True)
class ServingConfig:
    """How requests are served, and what a client may ask for at most.

    Args:
        name: name of the model in URLs.
        host: address to listen on; 0.0.0.0 for all.
        port: port to listen on.
        max_batch_size: rows that are scored together at most.
        max_delay_ms: milliseconds that a request waits for others at most when nothing runs.
        max_waiting: rows that may wait; beyond, requests get 429.
        max_rows: rows of one request.
        max_ids: ids of one request.
        max_body_mib: MiB of one request's body.
        max_held_mib: MiB of all bodies that are being received or answered; beyond, requests get 503.
        max_connections: open connections; fewer where the process may not open as many files.
        header_seconds: seconds in which the headers of a request must have arrived.
        body_seconds: seconds in which the body of a request must have arrived, and its answer must have been read.
        reload_seconds: seconds between two looks for a new package in the folder; 0 never looks.
        threads: threads that a batch computes with.
        notice_s: seconds after SIGTERM in which requests are still taken, while the server says that it is not ready
            and closes every connection after its answer.
        drain_s: seconds that requests may then take to finish.

    Raises:
        ValueError: for a number out of its range, or a name that cannot be part of a URL.
    """

    name: str = "nasrec"
    host: str = "127.0.0.1"
    port: int = 8080
    max_batch_size: int = 512
    max_delay_ms: float = 1.0
    max_waiting: int = 8192
    max_rows: int = 4096
    max_ids: int = 2**20
    max_body_mib: int = 16
    max_held_mib: int = 48
    max_connections: int = 1000
    header_seconds: float = 5.0
    body_seconds: float = 10.0
    reload_seconds: float = 5.0
    threads: int = 1
    notice_s: float = 2.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", self.name):
            raise ValueError(
                f"name: expected letters, digits and . _ -, of which the first is no sign, found {self.name!r}"
            )
        for name in ("max_batch_size", "max_waiting", "max_rows", "max_ids", "max_body_mib", "max_held_mib", "threads"):
            self._check(name, 1, 2**31 - 1)
        self._check("port", 0, 65_535)
        self._check("max_connections", 1, 2**20)
        for name in ("header_seconds", "body_seconds"):
            self._check(name, 0.01, 86_400)
        for name in ("max_delay_ms", "reload_seconds", "notice_s", "drain_s"):
            self._check(name, 0, 86_400)
        if self.max_held_mib < self.max_body_mib:
            raise ValueError(
                f"max_held_mib: expected at least max_body_mib, {self.max_body_mib}, found {self.max_held_mib}"
            )

    def _check(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and least <= value <= most):
            raise ValueError(f"{name}: expected a number from {least} to {most:g}, found {value}")
