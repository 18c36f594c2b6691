"""``nasrec demo``."""

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.demo.jobs import run

PROGRAM = Program(
    run,
    example="nasrec demo --out runs/demo",
    document=lambda rows: rows,
    records=False,
)
