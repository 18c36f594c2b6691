"""Searches a trained supernet for the best architectures."""

import sys

from nasrec_torchrec.cli.main import start

if __name__ == "__main__":
    start("search", "python -m apps.search", sys.argv[1:])
