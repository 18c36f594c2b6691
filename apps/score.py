"""Scores the rows of files with an exported model."""

import json
from pathlib import Path

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.config import TextFlags
from nasrec_torchrec.inference.config import ScoringConfig
from nasrec_torchrec.inference.scoring import score
from nasrec_torchrec.runs.files import local_folder


def main(package: Path, data: str, out: Path, config: ScoringConfig, text: TextFlags) -> None:
    """Writes the click probability of every row; a run that was killed goes on where it was.

    Args:
        package: folder that apps.export wrote.
        data: files, patterns with * and URIs, several separated by commas, or folders of Parquet files.
        out: folder that receives part-000000.parquet, ... with file, line and probability of each row.
    """
    with local_folder(package) as folder:
        print(json.dumps(score(folder, data.split(","), out, config, text)))


if __name__ == "__main__":
    run(main)
