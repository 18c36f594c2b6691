"""Exports a trained model to a package that scores without this project."""

import sys

from nasrec_torchrec.cli.main import start

if __name__ == "__main__":
    start("export", "python -m apps.export", sys.argv[1:])
