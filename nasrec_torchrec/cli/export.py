"""``nasrec export``."""

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.inference.jobs import export

PROGRAM = Program(
    export, example="nasrec export --model runs/model --data DATA --out runs/export --tables int8", show=str
)
