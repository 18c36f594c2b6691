"""Converts raw files into a prepared data set: streaming, in bounded memory, resumable and reproducible byte for byte.

1. Every piece of the raw files is parsed into an Arrow file of its own (:mod:`.parsing`).
2. The labels of all rows determine the splits; train yields dictionaries, means and deviations (:mod:`.fitting`).
3. Every Arrow file becomes one Parquet file per split, and the data set is put in its place (:mod:`.writing`).

A finished file is never written again, so a run that was killed resumes after its last finished piece.
"""

import sys
from pathlib import Path

from nasrec_torchrec.datasets.config import PreparationConfig
from nasrec_torchrec.datasets.fitting import fit
from nasrec_torchrec.datasets.parsing import parse
from nasrec_torchrec.datasets.preparation_job import Derivation, Job, RawData
from nasrec_torchrec.datasets.prepared import load_schema
from nasrec_torchrec.datasets.probe import probe
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.work_folder import is_current, work_folder
from nasrec_torchrec.datasets.writing import publish, write_splits

__all__ = ["Derivation", "PreparationConfig", "RawData", "prepare"]


def prepare(raw: RawData, out: Path, config: PreparationConfig | None = None) -> Schema:
    """Prepares a data set; ``out`` appears in one step once it is complete.

    Args:
        raw: raw files and what they mean.
        out: folder to write.
        config: how to do the work.

    Returns:
        Schema: The schema with all measured values.

    Raises:
        ValueError: If files are unreadable, too many rows are rejected, or ``out`` holds another data set.
    """
    job = Job(raw, out, config or PreparationConfig())
    if is_current(job):
        print(f"{out} is up to date: the same files were prepared in the same way", file=sys.stderr)
        return load_schema(out, tasks=True)
    probe(job)
    with work_folder(job) as work:
        parts = parse(job, work)
        fitted = fit(job, work, parts)
        splits = write_splits(job, work, parts, fitted)
        return publish(job, work, parts, fitted.schema, splits)
