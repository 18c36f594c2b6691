"""Shows where trainings stand: steps, loss, rows per second, time left, last checkpoint, restarts."""

import sys

from nasrec_torchrec.cli.main import start

if __name__ == "__main__":
    start("status", "python -m apps.status", sys.argv[1:])
