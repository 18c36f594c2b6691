"""``nasrec score``."""

from nasrec_torchrec.cli.program import Program, as_json
from nasrec_torchrec.inference.jobs import score

PROGRAM = Program(
    score,
    example="nasrec score --package runs/export --data 'logs/*.csv.gz' --raw --out runs/scores",
    show=as_json,
    document=lambda counts: counts,
    resume="run the same command again to resume after the last finished piece",
)
