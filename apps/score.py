"""Scores the rows of a Parquet file with an exported model."""

from pathlib import Path

from nasrec_torchrec.cli import run
from nasrec_torchrec.inference.scoring import score_parquet


def main(package: Path, data: Path, out: Path, batch_size: int = 4096) -> None:
    """Writes the click probability of every row.

    Args:
        package: folder that apps.export wrote.
        data: Parquet file, or folder of them, with the columns of the model's schema.
        out: Parquet file that receives the columns label and probability, in the order of the rows.
        batch_size: rows of a call.
    """
    rows = score_parquet(package, data, out, batch_size)
    print(f"{rows} rows scored: {out}")


if __name__ == "__main__":
    run(main)
