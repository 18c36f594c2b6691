"""Serves an exported model over HTTP."""

import sys

from nasrec_torchrec.cli.main import start

if __name__ == "__main__":
    start("serve", "python -m apps.serve", sys.argv[1:])
