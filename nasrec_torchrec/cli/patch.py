"""``nasrec patch``."""

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.inference.jobs import patch

PROGRAM = Program(
    patch,
    example="nasrec patch --package runs/export --delta monday.delta",
    show=lambda version: f"version {version}",
    document=lambda version: {"version": version},
)
