"""The settings of exporting, scoring and serving; importing them needs no PyTorch."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

TablePrecision = Literal["fp32", "fp16", "int8", "int4"]
Calibration = Literal["platt", "isotonic"]
TritonBackend = Literal["torch_aoti", "python"]
# Of a model, in URLs and folders.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAMES = "expected letters, digits and . _ -, of which the first is no sign"


@dataclass(frozen=True)
class ExportConfig:
    """How a model is exported.

    Args:
        tables: precision of the embedding tables: fp32, fp16, int8 or int4. The last two need 4 more bytes per row for
            a scale and a bias. A package needs FBGEMM unless all its tables are fp32.
        table_precisions: precisions of individual tables, by name.
        dense: precision of the dense part.
        calibrate: fits the package's probabilities to the clicks of the validation split, which needs the data set:
            platt scales and shifts the logits, isotonic fits any increasing function and needs SciPy and a thousand
            clicks or more.
        device: device to compile for; cuda requires such a device on this machine.
        map_tables: whether the tables lie in files of their own, which processes map into their memory instead of
            reading them: for tables that are larger than the memory, or that several processes share. On a CPU.
        simd_bits: width of the vector instructions. If unset, the widest of this machine; 256 runs wherever AVX2 does.
        triton: model repository of NVIDIA's Triton, to which the package is added as the next version of a model.
        triton_name: name of the model in Triton's repository.
        triton_backend: torch_aoti runs the compiled model without Python and requires tables in fp32; python runs the
            predictor.

    Raises:
        ValueError: If a precision, the device or the backend is unknown, if Triton cannot have the name, if tables are
            quantized or mapped for ``torch_aoti``, or mapped for a GPU.
    """

    tables: TablePrecision = "fp32"
    table_precisions: dict[str, TablePrecision] = field(default_factory=dict)
    dense: Literal["fp32", "bf16"] = "fp32"
    calibrate: Calibration | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    map_tables: bool = False
    simd_bits: int | None = None
    triton: str | None = None
    triton_name: str = "nasrec"
    triton_backend: TritonBackend = "torch_aoti"

    def __post_init__(self) -> None:
        choices = {
            "tables": get_args(TablePrecision),
            "dense": ("fp32", "bf16"),
            "calibrate": (None, *get_args(Calibration)),
            "device": ("cpu", "cuda"),
            "triton_backend": get_args(TritonBackend),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {list(allowed)}, found {getattr(self, name)!r}")
        if self.simd_bits not in (None, 128, 256, 512):
            raise ValueError(f"simd_bits: expected 128, 256 or 512, found {self.simd_bits!r}")
        if not _NAME.fullmatch(self.triton_name):
            raise ValueError(f"triton_name: {_NAMES}, found {self.triton_name!r}")
        if self.map_tables and self.device != "cpu":
            raise ValueError(f"map_tables: tables are mapped into the memory of a CPU; the device is {self.device}")
        quantized = {self.tables, *self.table_precisions.values()} != {"fp32"}
        if self.triton is not None and self.triton_backend == "torch_aoti":
            if quantized:
                raise ValueError(
                    "triton_backend: torch_aoti: quantized tables need FBGEMM, which Triton does not have; "
                    "export with tables fp32, or choose the python backend"
                )
            if self.map_tables:
                raise ValueError(
                    "triton_backend: torch_aoti: Triton does not map tables; export without map_tables, or choose the "
                    "python backend"
                )


@dataclass(frozen=True)
class ScoringConfig:
    """How files are scored.

    Args:
        raw: whether the files hold raw columns, which are transformed in the same way as the training data, instead of
            prepared ones.
        keep: columns of the files to copy beside the scores, such as a request's id. If unset, the label if there is
            one.
        batch_size: number of rows in a forward pass.
        piece_mib: size of the pieces that become one file of scores each, in MiB of text or in units of 8,192 Parquet
            rows.
        overwrite: whether to replace scores of something else in the same place.
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
    """How requests are served, and the limits on what a client may ask for.

    Args:
        name: name of the model in URLs, and of all models of a split together.
        models: folders of packages by the name of the model, to serve several.
        split: shares of the requests for ``name``, by the name of the model that answers them; their sum is 1.
        shadow: name of a model that scores all requests for others too, without an answer to the client.
        shadow_log: file that receives a line of JSON for every request that the shadow model scored.
        host: address to listen on; 0.0.0.0 for all.
        port: port to listen on.
        grpc_port: port to listen on for gRPC; if unset, the server speaks HTTP only.
        max_batch_size: largest number of rows that are scored together.
        max_delay_ms: longest time in milliseconds that a request waits for others while the server is idle.
        max_waiting: largest number of waiting rows; further requests get status 429.
        max_rows: largest number of rows in a request.
        max_ids: largest number of ids in a request.
        max_body_mib: largest size of a request's body in MiB.
        max_held_mib: largest size in MiB of all bodies that are being received or answered; further requests get
            status 503.
        max_connections: largest number of open connections; it is lowered if the process may not open as many files.
        header_seconds: time in seconds within which the headers of a request must arrive.
        body_seconds: time in seconds within which the body of a request must arrive, and its answer must be read.
        reload_seconds: time in seconds between two checks for a new package in the folder; 0 disables them.
        threads: number of threads that compute a batch.
        notice_s: time in seconds after SIGTERM during which requests are still accepted, while the server reports that
            it is not ready and closes every connection after its answer.
        drain_s: time in seconds that requests may then take to finish.

    Raises:
        ValueError: If a number is out of range, or the name cannot be part of a URL.
    """

    name: str = "nasrec"
    models: dict[str, str] = field(default_factory=dict)
    split: dict[str, float] = field(default_factory=dict)
    shadow: str | None = None
    shadow_log: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
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
        for kind, name in (("name", self.name), *(("models", name) for name in self.models)):
            if not _NAME.fullmatch(name):
                raise ValueError(f"{kind}: {_NAMES}, found {name!r}")
        self._check_split()
        for name in ("max_batch_size", "max_waiting", "max_rows", "max_ids", "max_body_mib", "max_held_mib", "threads"):
            self._check(name, 1, 2**31 - 1)
        self._check("port", 0, 65_535)
        if self.grpc_port is not None:
            self._check("grpc_port", 0, 65_535)
        self._check("max_connections", 1, 2**20)
        for name in ("header_seconds", "body_seconds"):
            self._check(name, 0.01, 86_400)
        for name in ("max_delay_ms", "reload_seconds", "notice_s", "drain_s"):
            self._check(name, 0, 86_400)
        if self.max_held_mib < self.max_body_mib:
            raise ValueError(
                f"max_held_mib: expected at least max_body_mib, {self.max_body_mib}, found {self.max_held_mib}"
            )

    def _check_split(self) -> None:
        known = sorted(self.models)
        for flag, names in (("split", self.split), ("shadow", [] if self.shadow is None else [self.shadow])):
            for name in names:
                if name not in self.models:
                    raise ValueError(f"{flag}: expected names of --models, {known}, found {name!r}")
        if self.split and self.name in self.models:
            raise ValueError(f"name: {self.name!r} names all models of the split together, but is one of --models too")
        shares = list(self.split.values())
        if shares and not (all(0 <= share <= 1 for share in shares) and abs(sum(shares) - 1) < 1e-6):
            raise ValueError(f"split: expected shares from 0 to 1 that add up to 1, found {self.split}")
        if self.shadow_log is not None and self.shadow is None:
            raise ValueError("shadow_log: there is no shadow model; name one with --shadow")

    def _check(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and least <= value <= most):
            raise ValueError(f"{name}: expected a number from {least} to {most:g}, found {value}")
