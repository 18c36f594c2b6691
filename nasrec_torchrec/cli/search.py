"""``nasrec search``."""

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.search.jobs import run

PROGRAM = Program(
    run,
    example="nasrec search --supernet runs/supernet --data DATA --out runs/search --max_flops 300000 --top_k 5",
    groups={"Results, and where candidates are kept": ("top_k", "storage", "study", "resume")},
    show=str,
    resume="run the same command again to resume with the candidates that are finished",
)
