"""Trains a supernet: one model that holds the weights of every architecture of a search space."""

import sys

from nasrec_torchrec.cli.main import start

if __name__ == "__main__":
    start("supernet", "python -m apps.train_supernet", sys.argv[1:])
