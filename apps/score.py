"""Scores the rows of files with an exported model."""

import sys

from nasrec_torchrec.cli.main import start

if __name__ == "__main__":
    start("score", "python -m apps.score", sys.argv[1:])
