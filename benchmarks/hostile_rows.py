"""Generated rows that are hard to read, with every kind of feature that a schema can have at once.

Texts have quotes, delimiters, NUL and composed letters; numbers are huge, negative, whole floats or have a sign; and
several texts mark missing values. A feature has the name of another raw column, and a cross comes before its parts.
"""

import csv
import io

import numpy as np

from nasrec_torchrec.datasets.config import TextFormat
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.schema import Schema

HOSTILE = Schema(
    "label",
    (
        DenseFeature("price", "standardize"),
        DenseFeature("age", "log1p"),
        DenseFeature("plain"),
        DenseFeature("days", "standardize", age_of="born", at="when"),
        DenseFeature("when", "log1p", column="delay"),  # named like the raw column of the moments
        DenseFeature("huge", "standardize"),
    ),
    (
        SparseFeature("both", 40, ids="hash", cross=("word", "folded")),  # before the features that it combines
        SparseFeature("word", ids="dictionary"),
        SparseFeature("hashed", 100, ids="hash"),
        SparseFeature("number", ids="dictionary", values="integer"),
        SparseFeature("folded", 50, ids="modulo"),
        SparseFeature("given", 30, ids="id"),
        SparseFeature("tags", ids="dictionary", multi_hot=True),
        SparseFeature("numbers", 40, ids="hash", multi_hot=True, separator=" ", values="integer"),
        SparseFeature("digits", 60, ids="hex"),
        SparseFeature("fresh", 64, ids="dynamic", column="word"),
        SparseFeature("delay", ids="dictionary", column="price"),
        SparseFeature("pair", ids="dictionary", cross=("hashed", "given")),
        SparseFeature("price_range", 12, ids="buckets", cross=("price",)),
        SparseFeature("age_range", ids="buckets", cross=("age",)),
        SparseFeature("hour", ids="hour", of="when"),
        SparseFeature("weekday", ids="weekday", of="when"),
        SparseFeature("hour_of_week", 99, ids="hash", cross=("hour", "weekday")),
        SparseFeature("days_range", ids="buckets", cross=("days",)),
        SparseFeature("clicks", ids="history", cross=("folded",)),
    ),
    text=TextFormat(missing=("", "NA")),
)


def hostile_lines(count: int) -> str:
    """Quotes, delimiters and NUL in texts, whole floats, large integers, marks of missing values."""
    rng = np.random.default_rng(0)
    words = ["a", 'a "quoted, word"', "é", "e\u0301", "1.0", "1", " 1", "x\0y", "NA", "", "NaN", "null", "0", "3.5"]
    huge = ["12345678901234567890123", "9223372036854775808"]
    numbers = ["5", " 5", "5.0", "+5", "005", "", "NA", *huge, "7", "-7", "-0"]
    moments = ["2024-01-31T12:30:00Z", "2024-02-04 23:59:59.5+02:00", "1706704200", "1706704200123", "1.5e9", "", "NA"]
    lists = ["a|b", "a", "", "NA", "b||a", "|", "NA|a", "c|c|c"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HOSTILE.raw_columns)
    for _ in range(count):
        row = {
            "label": rng.integers(2),
            "price": rng.choice(["", "NA", "1e3", "-0.5", "3", "NaN", str(rng.normal())]),
            "age": rng.choice(["", "-3", "10", "1e20", "7.5"]),
            "plain": rng.choice(["0", "-1.25", "", str(rng.normal())]),
            "word": rng.choice(words),
            "hashed": rng.choice(words),
            "number": rng.choice(numbers),
            "folded": rng.choice(["-1", "0", "49", "50", "99.0", "18446744073709551616", ""]),
            "given": rng.integers(30),
            "tags": rng.choice(lists),
            "when": rng.choice(moments),
            "born": rng.choice(moments),
            "delay": rng.choice(["", "NA", "0.1", "1e300", "-3", "9007199254740993"]),
            "huge": rng.choice(["1e30", "-1e30", "", "12345678901234567890123", "0.1", "NaN"]),
            "numbers": " ".join(rng.choice(["5", "5.0", "+5", "-5", "12345678901234567890123"], rng.integers(4))),
            "digits": rng.choice(["0000000f", "F", "-1", "", "NA", "ffffffffffffffffffff", "00000010"]),
        }
        writer.writerow([row[name] for name in HOSTILE.raw_columns])
    return text.getvalue()
