"""``nasrec report``."""

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.search.jobs import write_report

PROGRAM = Program(
    write_report,
    example="nasrec report --search runs/search --finalists runs/model-a,runs/model-b",
    show=str,
    document=lambda page: {"report": str(page)},
)
