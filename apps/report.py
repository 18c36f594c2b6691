"""Shows a search, with its finalists beside the supernet's predictions, as one page."""

import sys

from nasrec_torchrec.cli.main import start

if __name__ == "__main__":
    start("report", "python -m apps.report", sys.argv[1:])
