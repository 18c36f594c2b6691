"""Runs everything end to end on MovieLens-100K."""

import sys

from nasrec_torchrec.cli.main import start

if __name__ == "__main__":
    start("demo", "python -m apps.demo", sys.argv[1:])
