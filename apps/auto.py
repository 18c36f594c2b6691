"""Finds the best model for a prepared data set within a time budget: the main job."""

import sys

from nasrec_torchrec.cli.main import start

if __name__ == "__main__":
    start("auto", "python -m apps.auto", sys.argv[1:])
