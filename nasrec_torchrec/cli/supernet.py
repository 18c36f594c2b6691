"""``nasrec supernet``."""

from nasrec_torchrec.cli.groups import OF_NETWORKS, TRAINING
from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.search_space import SPACES
from nasrec_torchrec.training.jobs import run_supernet

PROGRAM = Program(
    run_supernet,
    example="nasrec supernet --data DATA --out runs/supernet --num_blocks 3 --epochs 3",
    groups=TRAINING,
    spaces=SPACES,
    unlisted=OF_NETWORKS,
    resume="run the same command again to resume from the last checkpoint",
)
