"""Prepares raw click logs: schema, manifest, and sharded Parquet files per split."""

import sys

from nasrec_torchrec.cli.main import start

if __name__ == "__main__":
    start("prepare", "python -m apps.prepare_data", sys.argv[1:])
