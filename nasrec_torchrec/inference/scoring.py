"""Scores files with an exported package: prepared rows, or raw rows that are transformed as the manifest says."""

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from nasrec_torchrec.datasets import pieces, prepared, sources, transform, values
from nasrec_torchrec.datasets.checksums import sha256
from nasrec_torchrec.datasets.click_data import ClickData
from nasrec_torchrec.datasets.config import TextFlags, TextFormat
from nasrec_torchrec.datasets.contents import contents
from nasrec_torchrec.datasets.pieces import Reading, Record, typed_schema, with_partitions
from nasrec_torchrec.datasets.quality import Quality
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.sources import Piece, Source
from nasrec_torchrec.datasets.splits import SPLITS
from nasrec_torchrec.datasets.words import DICTIONARIES, read_dictionaries
from nasrec_torchrec.inference.config import ScoringConfig
from nasrec_torchrec.inference.predictor import MANIFEST, OUTPUT, Predictor, Request
from nasrec_torchrec.runs.files import atomic_path, local_copy, remove_leftovers, write_text
from nasrec_torchrec.runs.lock import lock
from nasrec_torchrec.runs.paths import to_path

# Readers of a folder as one table, such as PyArrow and Spark, ignore names that begin with "_".
REJECTS, QUALITY, _SOURCES = "_rejects.jsonl", "_quality.json", "_sources.json"
# Columns of every file of scores; a model of several labels has a column of probabilities for each.
FILE, LINE = "file", "line"
_KEY = b"nasrec-torchrec"


class Scorer(Protocol):
    """What scores requests: the predictor of a package, or all ranks together.

    Args:
        manifest: document with the ``schema`` of the model, and ``sha256`` of its dictionaries.
        dense_features: names of the dense features.
        outputs: names of what the model predicts, see :class:`~nasrec_torchrec.inference.predictor.Predictor`.
    """

    manifest: dict[str, Any]
    dense_features: list[str]
    outputs: list[str]

    def predict(self, request: Request) -> Tensor:
        """Returns the click probabilities in float32, ``(B,)``, or ``(B, T)`` of a model of T labels."""


def score(
    package: Path,
    files: Sequence[str],
    out: Path,
    config: ScoringConfig,
    text: TextFormat | TextFlags | None = None,
) -> dict[str, int]:
    """Scores rows with a package, see :func:`score_with`.

    Args:
        package: folder that ``nasrec export`` wrote.
        files: see :func:`score_with`.
        out: see :func:`score_with`.
        config: see :func:`score_with`.
        text: see :func:`score_with`.

    Raises:
        ValueError: If the package cannot be read, or as :func:`score_with` does.
    """
    return score_with(Predictor(package), sha256(package / MANIFEST), package, files, out, config, text)


def score_with(
    scorer: Scorer,
    identity: str,
    words: Path,
    files: Sequence[str],
    out: Path,
    config: ScoringConfig,
    text: TextFormat | TextFlags | None = None,
) -> dict[str, int]:
    """Scores rows and writes them to files in the same order; a scoring that was killed resumes where it stopped.

    Every scored row has its ``file``, its ``line`` there (in Parquet files its row, counted from 1), the columns to
    keep, and its ``probability``; of a model of several labels, ``probability_`` and the name of each. Rows that cannot
    be read are listed in ``_rejects.jsonl`` with line and reason. ``_quality.json`` counts the missing and unknown
    values of every feature; a share far above that of the training rows causes a warning on stderr. An id that its
    table does not have is unknown and looked up as 0, the missing id.

    Args:
        scorer: model that scores them.
        identity: tells the model from others.
        words: folder with the model's dictionaries, which raw rows need.
        files: paths and URIs, which may contain ``*``, or folders of Parquet files.
        out: folder that receives ``part-000000.parquet``, ...
        config: how the rows are scored.
        text: how raw text files are read; settings that are unset are those of the training data.

    Returns:
        dict: The numbers of scored and of rejected rows.

    Raises:
        ValueError: If a file cannot be read, prepared rows come from another preparation than the
            model's, no row can be scored, or ``out`` holds something else.
    """
    job = _Job(scorer, identity, words, files, out, config, text)
    job.check_types()
    with lock(out):
        remove_leftovers(out)
        if config.overwrite:
            _remove_scores(out)
        return _score(job)


def _score(job: "_Job") -> dict[str, int]:
    out = job.out
    job.begin()
    records: list[Record] = []
    qualities = []
    for record in pieces.work_off(job.reading, job.finished, job.write, 1, "score"):
        qualities.append(job.quality_of(len(records)))
        records.append(record)
    if not records:
        raise ValueError(f"{', '.join(file.uri for file in job.files[:3])}: no row found")
    counted = {"rows": sum(part.rows for part in records), "rejected": sum(part.rejected for part in records)}
    if counted["rejected"]:
        pieces.collect_rejects(sorted(out.glob("_part-*.rejects"), key=lambda file: file.name), out / REJECTS)
    if not counted["rows"] and counted["rejected"]:
        first = json.loads((out / REJECTS).read_text().splitlines()[0])
        raise ValueError(
            f"all {counted['rejected']} rows were rejected; the first is {first['file']}, line {first['line']}: "
            f"{first['reason']}; all are in {out / REJECTS}"
        )
    quality = Quality.of(job.schema, qualities)
    write_text(out / QUALITY, json.dumps(quality.to_json(), indent=2))
    for warning in quality.warnings():
        print(f"warning: {warning}", file=sys.stderr)
    return counted


def requests(data: ClickData, predictor: Scorer, batch_size: int) -> Iterator[Request]:
    """Yields requests of successive rows."""
    for rows in torch.arange(len(data)).split(batch_size):
        batch = data.select(rows)
        sparse = batch.sparse_features
        yield Request(
            sparse.values(),
            sparse.lengths().view(len(sparse.keys()), -1).long(),
            batch.dense_features if predictor.dense_features else None,
            sparse.weights_or_none(),
        )


class _Job:
    """What to score, and how. Two scorings with the same identity write the same files."""

    def __init__(
        self,
        scorer: Scorer,
        identity: str,
        words: Path,
        patterns: Sequence[str],
        out: Path,
        config: ScoringConfig,
        text: TextFormat | TextFlags | None,
    ) -> None:
        self.predictor, self.out, self.config = scorer, out, config
        trained = Schema.from_json(json.dumps(self.predictor.manifest["schema"]))
        # Labels are not read, but what is in their columns is kept.
        self.schema, tasks = trained.without_tasks(), trained.tasks
        self._labels = [trained.label, *(task.raw_column if config.raw else task.name for task in tasks)]
        self._probabilities = [f"{OUTPUT}_{name}" for name in scorer.outputs] if tasks else scorer.outputs
        self.dictionaries = (
            read_dictionaries(words, self.schema, scorer.manifest.get("sha256", {})) if config.raw else {}
        )
        # Prepared rows are read by the same rules, with numbers and ids that are used as they are.
        self.rules = self.schema if config.raw else self.schema.as_prepared()
        if isinstance(text, TextFlags):
            text = text.over(self.schema.text)
        self.files = sources.find(_expand(patterns))
        reserved = {FILE, LINE, *self._probabilities} & set(config.keep)
        if reserved:
            raise ValueError(f"keep: {sorted(reserved)} are columns of the scores themselves; rename them in the files")
        for file in self.files:
            if not (config.raw or file.kind == "parquet"):
                raise ValueError(f"{file.uri}: prepared rows are Parquet files; --raw true transforms raw ones")
            if not config.raw:
                self._check_preparation(to_path(file.uri))
        self.reading = Reading(self.files, self.wanted, text or self.schema.text, config.piece_mib)
        self._manifest = identity

    def begin(self) -> None:
        """Checks the content of the output folder, and records there what is scored."""
        known = self.out / _SOURCES
        try:
            earlier = json.loads(known.read_text())
        except (OSError, ValueError):
            earlier = []
        found = contents(self.files, earlier if isinstance(earlier, list) else [], 1)
        kept = {name: value for name, value in asdict(self.config).items() if name not in ("batch_size", "overwrite")}
        # The scores name the files, so the names count too.
        description = [self._manifest, [(content.file, content.sha256) for content in found], kept]
        identity = json.dumps([*description, asdict(self.reading.text_format)])
        self.identity = hashlib.sha256(identity.encode()).hexdigest()
        self.finished(0)
        write_text(known, json.dumps([asdict(content) for content in found]))

    def check_types(self) -> None:
        """Finds missing columns and types that cannot fit before anything is written."""
        for source in self.files:
            self.reading.header(source)
            if not source.typed:
                continue
            empty = with_partitions(typed_schema(source).empty_table(), source)
            try:
                transform.parse(empty.select(self.wanted(empty.column_names)), self.rules, scoring=True)
            except ValueError as error:
                raise ValueError(f"{source.uri}: {error}") from None

    def wanted(self, names: Sequence[str]) -> list[str]:
        """Returns those of the existing columns that are read; labels are not needed."""
        return list(dict.fromkeys([*self.rules.input_columns, *self.kept(names)]))

    def kept(self, names: Sequence[str]) -> tuple[str, ...]:
        """Returns the columns to copy: by default those of the labels, unless a column of scores has the name."""
        ours = FILE, LINE, *self._probabilities
        return self.config.keep or tuple(dict.fromkeys(x for x in self._labels if x in names and x not in ours))

    def finished(self, number: int) -> Record | None:
        """Returns the record of a piece that an earlier run finished."""
        document = self._described(number)
        return None if document is None else Record.from_json(document.get("record"), self._file(number))

    def quality_of(self, number: int) -> dict[str, dict[str, Any]]:
        """Returns the counts of a finished piece."""
        document = self._described(number)
        assert document is not None
        return document["quality"]

    def write(self, number: int, piece: Piece, source: Source, index: int, names: Sequence[str]) -> Record:
        """Writes one file of scores."""
        rows = self.reading.rows(piece, source, names)
        rejects = dict(rows.rejects)
        lines, kept = rows.lines, {}
        refused: values.Rejects = {}
        for name in self.kept(names):
            column = values.plain(rows.table.column(name))
            kept[name] = values.text(column, refused) if values.is_text(column.type) else column
        rejects |= {int(lines[row]): f"it is to be kept: {reason}" for row, reason in refused.items()}
        good = np.delete(np.arange(rows.table.num_rows), list(refused))
        quality = Quality(self.schema)
        try:
            parsed, bad = transform.parse(rows.table.take(pa.array(good)), self.rules, scoring=True)
            rejects |= {int(lines[good[row]]): reason for row, reason in bad.items()}
            good = np.delete(good, list(bad))
            table, bad = transform.finish(parsed, self.rules, self.dictionaries, quality)
            rejects |= {int(lines[good[row]]): reason for row, reason in bad.items()}
            good = np.delete(good, list(bad))
            table = table.append_column(self.schema.label, pa.array(np.zeros(len(good), np.int8)))
            data = ClickData.from_table(table, self.schema, rows.where)
        except ValueError as error:
            raise ValueError(f"{rows.where}: {error}" if source.uri not in str(error) else str(error)) from None
        parts = [self.predictor.predict(request) for request in requests(data, self.predictor, self.config.batch_size)]
        columns = torch.cat(
            [torch.empty(0, len(self._probabilities)), *(part.view(-1, len(self._probabilities)) for part in parts)]
        )
        scores = pa.table(
            {
                FILE: pa.array([source.uri] * len(good)).dictionary_encode(),
                LINE: lines[good],
                **{name: column.take(pa.array(good)) for name, column in kept.items()},
                **dict(zip(self._probabilities, columns.t().contiguous().numpy(), strict=True)),
            }
        )
        record = Record(index, piece.end, piece.next_line, len(good), len(rejects), piece.progress)
        target = self._file(number)
        # The scores come last: they mark the piece as finished.
        if rejects:
            pieces.write_rejects(target.with_name(f"_{target.stem}.rejects"), source.uri, rejects)
        description = {"job": self.identity, "record": record.to_json(), "quality": quality.to_json()}
        with atomic_path(target) as temporary:
            pq.write_table(scores.replace_schema_metadata({_KEY: json.dumps(description)}), temporary)
        return record

    def _file(self, number: int) -> Path:
        return self.out / f"part-{number:06d}.parquet"

    def _described(self, number: int) -> dict[str, Any] | None:
        file = self._file(number)
        if not file.exists():
            return None
        document = _description(file)
        if document is None or document.get("job") != self.identity:
            raise ValueError(f"{self.out}: holds scores of something else; choose another --out, or --overwrite true")
        return document

    def _check_preparation(self, file: Path) -> None:
        """Checks that prepared rows are undamaged and come from the preparation that the model was trained on."""
        folder, split = file.parent.parent, file.parent.name
        if split not in SPLITS or not (folder / prepared.MANIFEST).exists():
            return
        manifest = prepared.read_manifest(folder)
        theirs = prepared.load_schema(folder, self.schema.embedding_dim).reduced_to(self.schema)
        difference = self.schema.difference(theirs)
        if difference:
            raise ValueError(f"{folder}: the model was trained on data of another schema: {difference}")
        for name, checksum in manifest["dictionaries"].items():
            mine = self.predictor.manifest["sha256"].get(f"{DICTIONARIES}/{name}", checksum)
            if mine != checksum:
                raise ValueError(f"{folder}: the model was trained on data whose dictionary {name} has other words")
        prepared.check_split(folder, split, manifest)
        known = {entry["name"]: entry["sha256"] for entry in manifest["splits"][split]["files"]}
        prepared.check_sum(local_copy(file), known[file.name])


def _expand(patterns: Sequence[str]) -> list[str]:
    files: list[str] = []
    for pattern in patterns:
        folder = to_path(pattern)
        found = sorted(map(str, folder.glob("*.parquet"))) if folder.is_dir() else sources.expand([pattern])
        if not found:
            raise ValueError(f"{pattern}: no Parquet file found")
        files += found
    return files


def _description(file: Path) -> dict[str, Any] | None:
    """Returns the description in a file of scores; None if the file was not written by a scoring."""
    try:
        document = json.loads((pq.read_schema(local_copy(file)).metadata or {}).get(_KEY, b"null"))
    except (OSError, ValueError) as error:  # also what Arrow raises
        raise ValueError(f"{file}: cannot be read; remove it to have it written again: {error}") from None
    return document if isinstance(document, dict) else None


def _remove_scores(out: Path) -> None:
    """Removes what a scoring wrote, and nothing else."""
    files = sorted(out.glob("part-??????.parquet"))
    for file in files:
        try:
            ours = _description(file) is not None
        except ValueError:
            ours = (out / _SOURCES).exists()  # a damaged file of scores
        if not ours:
            raise ValueError(f"{file}: was not written by a scoring, and is not overwritten; choose another --out")
    # Files without a number come last, so that an interrupted removal can be repeated.
    for file in [*files, *out.glob("_part-*.rejects"), *(out / name for name in (REJECTS, QUALITY, _SOURCES))]:
        file.unlink(missing_ok=True)
