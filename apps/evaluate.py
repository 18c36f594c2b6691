"""Measures a trained model on a split: AUC, log loss, normalized entropy."""

import sys

from nasrec_torchrec.cli.main import start

if __name__ == "__main__":
    start("evaluate", "python -m apps.evaluate", sys.argv[1:])
