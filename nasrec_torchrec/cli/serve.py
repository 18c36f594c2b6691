"""``nasrec serve``."""

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.inference.jobs import serve

PROGRAM = Program(serve, example="nasrec serve --package runs/export --port 8080")
