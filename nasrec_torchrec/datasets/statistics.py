"""Statistics of a prepared data set, as text and as a figure."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nasrec_torchrec.datasets.checksums import sha256
from nasrec_torchrec.datasets.features import FIRST_WORD, MOMENT_IDS, SparseFeature
from nasrec_torchrec.datasets.moments import name_of
from nasrec_torchrec.datasets.names import safe_name
from nasrec_torchrec.datasets.prepared import load_schema, open_split, read_manifest
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.words import DICTIONARIES
from nasrec_torchrec.progress import progress_bar
from nasrec_torchrec.runs.files import atomic_path
from nasrec_torchrec.table_widths import table_bytes


@dataclass(frozen=True)
class Column:
    """A categorical feature in one split.

    Args:
        name: name of the feature.
        table: name of the table that it looks up.
        num_embeddings: number of rows of that table.
        distinct: number of distinct ids.
        missing: fraction of rows without a value.
        unknown: fraction of values that are not in the dictionary; None without a dictionary.
        mean_length: mean number of values per row.
        top: the most frequent values and their fractions.
    """

    name: str
    table: str
    num_embeddings: int
    distinct: int
    missing: float
    unknown: float | None
    mean_length: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Statistics:
    """A prepared data set.

    Args:
        splits: number of rows and click rate of each split.
        split: split on which the columns were measured.
        dense: mean, deviation, smallest and largest value, and fraction of zeros of each dense feature.
        sparse: statistics of the categorical features.
        table_bytes: bytes of the float32 weights of each embedding table, the largest first.
        rejected: number of raw rows that could not be read.
        keep_negatives: share of the training rows without a click that preparation kept.
        left_out: number of training rows that it did not keep.
        tasks: of each further label by split, the rows where it is known and its rate among them.
    """

    splits: Mapping[str, tuple[int, float]]
    split: str
    dense: Mapping[str, tuple[float, float, float, float, float]]
    sparse: tuple[Column, ...]
    table_bytes: Mapping[str, int]
    rejected: int
    keep_negatives: float = 1.0
    left_out: int = 0
    tasks: Mapping[str, Mapping[str, tuple[int, float]]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the statistics as JSON values, for programs."""
        return {
            "splits": {name: {"rows": rows, "click_rate": rate} for name, (rows, rate) in self.splits.items()},
            "rejected": self.rejected,
            "keep_negatives": self.keep_negatives,
            "left_out": self.left_out,
            "split": self.split,
            "dense": {
                name: dict(zip(("mean", "deviation", "minimum", "maximum", "zeros"), found, strict=True))
                for name, found in self.dense.items()
            },
            "sparse": [
                asdict(column) | {"top": [{"value": word, "share": share} for word, share in column.top]}
                for column in self.sparse
            ],
            "table_bytes": dict(self.table_bytes),
            **(
                {
                    "tasks": {
                        name: {split: {"rows": rows, "rate": rate} for split, (rows, rate) in found.items()}
                        for name, found in self.tasks.items()
                    }
                }
                if self.tasks
                else {}
            ),
        }

    def __str__(self) -> str:
        lines = [f"{'split':<12}{'rows':>14}{'clicks':>9}"]
        lines += [f"{name:<12}{rows:>14,}{rate:>9.2%}" for name, (rows, rate) in self.splits.items()]
        for task, found in self.tasks.items():
            lines.append(f"{task}, where it is known")
            lines += [f"{name:<12}{rows:>14,}{rate:>9.2%}" for name, (rows, rate) in found.items()]
        lines.append(f"rejected rows: {self.rejected:,}")
        if self.keep_negatives < 1:
            whole = self.splits["train"][0] + self.left_out
            clicks = self.splits["train"][0] * self.splits["train"][1]
            lines.append(
                f"left out by --keep-negatives {self.keep_negatives:g}: {self.left_out:,} training rows without a "
                f"click; of all {whole:,}, {clicks / max(1, whole):.2%} are clicks, which is what models predict"
            )
        lines.append("")
        width = max(len(name) for name in [*self.dense, *(column.name for column in self.sparse)]) + 2
        if self.dense:
            lines.append(
                f"{'dense (' + self.split + ')':<{max(width, 18)}}{'mean':>10}{'sd':>10}{'min':>10}{'max':>10}"
                f"{'zeros':>8}"
            )
            for name, (mean, deviation, low, high, zeros) in self.dense.items():
                lines.append(
                    f"{name:<{max(width, 18)}}{mean:>10.4g}{deviation:>10.4g}{low:>10.4g}{high:>10.4g}{zeros:>8.1%}"
                )
            lines.append("")
        lines.append(
            f"{'sparse (' + self.split + ')':<{max(width, 18)}}{'distinct':>12}{'table rows':>12}{'missing':>9}"
            f"{'unknown':>9}{'length':>8}  most frequent"
        )
        for column in self.sparse:
            unknown = "" if column.unknown is None else f"{column.unknown:.1%}"
            top = ", ".join(f"{word} {share:.1%}" for word, share in column.top)
            lines.append(
                f"{column.name:<{max(width, 18)}}{column.distinct:>12,}{column.num_embeddings:>12,}"
                f"{column.missing:>9.1%}{unknown:>9}{column.mean_length:>8.2f}  {top}"
            )
        total = sum(self.table_bytes.values())
        lines += ["", f"embedding tables: {total / 2**20:,.1f} MiB of float32 weights; the largest:"]
        for name, size in list(self.table_bytes.items())[:5]:
            lines.append(f"  {name:<{max(width, 18)}}{size / 2**20:>12,.2f} MiB {size / total:>7.1%}")
        return "\n".join(lines)

    def draw(self, path: Path) -> Path:
        """Writes a PNG file with click rates, used and unused table rows, missing values, and memory per table."""
        from matplotlib.figure import Figure

        names = [column.name for column in self.sparse]
        height = max(3.5, 0.24 * len(names) + 1.2)
        figure = Figure(figsize=(17, height), layout="constrained")
        axes = figure.subplots(1, 4)
        places = np.arange(len(names))
        rates = [100 * rate for _, rate in self.splits.values()]
        axes[0].bar(list(self.splits), rates, color="tab:blue")
        axes[0].set_title("clicks, % of rows")
        for place, (rows, rate) in enumerate(self.splits.values()):
            axes[0].text(place, 100 * rate, f"{rows:,}", ha="center", va="bottom", fontsize=8)
        axes[1].barh(places, [column.num_embeddings for column in self.sparse], color="lightgray", label="table rows")
        axes[1].barh(places, [column.distinct for column in self.sparse], color="tab:blue", label="ids that occur")
        axes[1].set_xscale("log")
        axes[1].set_title(f"cardinality ({self.split})")
        axes[1].legend(fontsize=8)
        axes[2].barh(places, [100 * column.missing for column in self.sparse], color="tab:orange", label="missing")
        unknown = [100 * (column.unknown or 0) for column in self.sparse]
        axes[2].barh(places, unknown, left=[100 * c.missing for c in self.sparse], color="tab:red", label="unknown")
        axes[2].set_title(f"values without a row of their own, % ({self.split})")
        axes[2].legend(fontsize=8)
        for axis in axes[1:3]:
            axis.set_yticks(places, names, fontsize=8)
            axis.invert_yaxis()
        tables = list(self.table_bytes.items())[:15]
        axes[3].barh([name for name, _ in tables], [size / 2**20 for _, size in tables], color="tab:green")
        axes[3].invert_yaxis()
        axes[3].tick_params(axis="y", labelsize=8)
        axes[3].set_title("largest tables, MiB")
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=90)
        return path


def measure(folder: Path, split: str = "train", top: int = 5) -> Statistics:
    """Reads a whole prepared data set, one column at a time.

    Args:
        folder: folder of the data set.
        split: split whose columns are measured.
        top: how many of the most frequent values of each feature to keep.

    Raises:
        ValueError: If a file is not the one that the manifest describes.
    """
    manifest, schema = read_manifest(folder), load_schema(folder, tasks=True)
    files = open_split(folder, split)
    checked = [
        (folder / name / file["name"], file["sha256"])
        for name, described in manifest["splits"].items()
        for file in described["files"]
    ]
    with progress_bar(len(checked) + len(schema.dense) + len(schema.sparse), "describe", "step") as bar:
        for file, expected in checked:
            if not file.exists() or sha256(file) != expected:
                raise ValueError(f"{file}: is missing or was changed: its checksum is not the manifest's")
            bar.update()
        dense = {}
        for number in schema.dense:
            dense[number.name] = _moments(files, number.name)
            bar.update()
        sparse = []
        for feature in schema.sparse:
            sparse.append(_count(folder, files, feature, top))
            bar.update()
    sizes = {table.name: table_bytes([table]) for table in schema.tables()}
    return Statistics(
        {name: (described["rows"], _rate(described)) for name, described in manifest["splits"].items()},
        split,
        dense,
        tuple(sparse),
        dict(sorted(sizes.items(), key=lambda item: -item[1])),
        manifest["rejected"],
        float(manifest.get("split", {}).get("keep_negatives", 1.0)),
        manifest.get("left_out", 0),
        {
            task.name: {
                name: (described["tasks"][task.name]["rows"], _rate(described["tasks"][task.name]))
                for name, described in manifest["splits"].items()
            }
            for task in schema.tasks
        },
    )


def _rate(counted: Mapping[str, int]) -> float:
    return counted["positives"] / max(1, counted["rows"])


def _chunks(files: ClickFiles, column: str) -> Iterator[pa.Array]:
    for file in files.files:
        for batch in pq.ParquetFile(file).iter_batches(columns=[column]):
            yield batch.column(0)


def _moments(files: ClickFiles, column: str) -> tuple[float, float, float, float, float]:
    count, total, squares, zeros, low, high = 0, 0.0, 0.0, 0, np.inf, -np.inf
    for chunk in _chunks(files, column):
        values = chunk.to_numpy().astype(np.float64)
        count, zeros = count + len(values), zeros + int(np.count_nonzero(values == 0))
        total, squares = total + float(values.sum()), squares + float(np.square(values).sum())
        low, high = min(low, float(values.min(initial=np.inf))), max(high, float(values.max(initial=-np.inf)))
    if not count:
        return (0.0, 0.0, 0.0, 0.0, 0.0)
    mean = total / count
    return mean, float(np.sqrt(max(0.0, squares / count - mean**2))), low, high, zeros / count


def _count(folder: Path, files: ClickFiles, feature: SparseFeature, top: int) -> Column:
    assert feature.num_embeddings is not None
    known = np.arange(feature.num_embeddings if feature.ids != "dynamic" else 0)
    counts = np.zeros(len(known), np.int64)
    rows = missing = 0
    for chunk in _chunks(files, feature.name):
        rows += len(chunk)
        if feature.multi_hot:
            missing += int(np.count_nonzero(chunk.value_lengths().to_numpy() == 0))
            chunk = chunk.flatten()
        else:
            missing += int(np.count_nonzero(chunk.to_numpy() == 0))
        found, times = np.unique(chunk.to_numpy(), return_counts=True)
        if feature.ids == "dynamic":
            known, places = np.unique(np.concatenate([known, found]), return_inverse=True)
            counts = np.bincount(places, np.concatenate([counts, times]), len(known)).astype(np.int64)
        else:
            counts[found] += times
    values = max(1, int(counts.sum()))
    words: list[Any] | None = None
    if feature.ids == "dictionary":
        file = folder / DICTIONARIES / f"{safe_name(feature.table)}.parquet"
        words = ["(missing)", "(unknown)", *pq.read_table(file).column("word").to_pylist()]
    if feature.ids in MOMENT_IDS:
        words = ["(missing)", *(name_of(feature.ids, number) for number in range(1, feature.num_embeddings))]
    best = np.argsort(-counts, kind="stable")[: min(top, int(np.count_nonzero(counts)))]
    return Column(
        feature.name,
        feature.table,
        feature.num_embeddings,
        int(np.count_nonzero(counts)),
        missing / max(1, rows),
        float(counts[FIRST_WORD - 1]) / values if feature.ids == "dictionary" else None,
        float(counts.sum()) / max(1, rows),
        tuple((str(words[i]) if words else _name(int(known[i])), float(counts[i]) / values) for i in best),
    )


def _name(number: int) -> str:
    return f"id {number}" if number else "(missing)"
