"""``nasrec train``."""

from nasrec_torchrec.cli.groups import TRAINING
from nasrec_torchrec.cli.program import Program, as_json
from nasrec_torchrec.training.jobs import run

PROGRAM = Program(
    run,
    example="nasrec train --data DATA --out runs/model --architecture criteo-small --learning_rates 0.1,0.2",
    groups=TRAINING,
    show=as_json,
    resume="run the same command again to resume from the last checkpoint",
)
