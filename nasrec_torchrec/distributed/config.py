"""Options of sharded training; importable without torch."""

from typing import Literal

QuantizedComms = Literal["none", "fp16", "bf16"]
TableMemory = Literal["device", "host", "host_cached", "auto"]
