"""Trains NASRecNets from scratch, or a baseline to compare with, and keeps the best."""

import sys

from nasrec_torchrec.cli.main import start

if __name__ == "__main__":
    start("train", "python -m apps.train", sys.argv[1:])
