"""Options of sharded training; importable without torch."""

from typing import Literal

QuantizedComms = Literal["none", "fp16", "bf16"]
TableMemory = Literal["device", "host", "host_cached", "auto"]
# For plans and for pipelines of one's own: our trainings cannot write checkpoints of tables on SSDs.
SharderMemory = TableMemory | Literal["ssd"]
TableOptimizer = Literal["sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam", "lamb", "rowwise_lamb"]
