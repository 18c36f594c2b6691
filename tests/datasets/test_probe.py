"""Files that cannot be prepared fail at once, with a guess why."""

import time
from pathlib import Path

import pytest

from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig, TextFormat
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.schema import Schema

SCHEMA = Schema("clicked", (DenseFeature("price"),), (SparseFeature("shop", 100, "hash"),), 8)
ROWS = 60_000  # more than the probe looks at


def _lines() -> list[str]:
    rows = (f"{number % 3 // 2},{number % 97}.5,shop {number % 13}" for number in range(ROWS))
    return ["clicked,price,shop", *rows]


def _prepare(folder: Path, content: bytes, text: TextFormat | None = None, **config: float) -> None:
    file = folder / "log.csv"
    file.write_bytes(content)
    prepare(RawData((str(file),), SCHEMA, text, SplitConfig()), folder / "data", PreparationConfig(**config))


def _bytes(lines: list[str], encoding: str = "utf-8") -> bytes:
    return ("\n".join(lines) + "\n").encode(encoding)


@pytest.mark.parametrize(
    "content, text, messages",
    [
        (
            _bytes([line.replace(",", ";") for line in _lines()]),
            None,
            [
                "missing columns",
                "divided by ';' and not by ',': pass --delimiter ';'",
                "with line 1 'clicked;price",
            ],
        ),
        (
            _bytes([line.replace(",", "\t") for line in _lines()[1:]]),
            TextFormat(columns=("clicked", "price", "shop")),
            [
                "rows that were tried from all over the file",
                r"divided by '\t'",
                r"pass --delimiter '\t'",
            ],
        ),
        (
            _bytes(["clicked,price,shop", *(f"{number % 3},1,a" for number in range(ROWS))]),
            None,
            ["found '2'", "the label holds '", "'2' in ", "label_values in the schema says what each means"],
        ),
        (
            _bytes([line.replace("shop 1", "café") for line in _lines()], "latin-1"),
            None,
            ["expected valid UTF-8", "perhaps in Latin-1: convert it, for instance by iconv"],
        ),
        (
            _bytes([line.replace("shop 1", '"shop, 1"') for line in _lines()]),
            TextFormat(quoting=False),
            ["expected 3 columns, found 4", "more of its lines are rows with --quoting true"],
        ),
    ],
    ids=["delimiter", "delimiter without header", "label", "encoding", "quoting"],
)
def test_what_cannot_work_fails_before_the_file_is_read(tmp_path: Path, content: bytes, text, messages: list[str]):
    started = time.perf_counter()
    with pytest.raises(ValueError) as error:
        _prepare(tmp_path, content, text)
    assert all(message in str(error.value) for message in messages), error.value
    assert not list(tmp_path.glob("*reject*")) and not (tmp_path / ".data.preparing").exists()
    assert time.perf_counter() - started < 5  # well below a second on a machine that does nothing else


def test_a_bad_beginning_of_a_good_file_is_accepted(tmp_path: Path):
    lines = _lines()
    lines[1:501] = ["broken"] * 500
    _prepare(tmp_path, _bytes(lines))
    assert (tmp_path / "data" / "manifest.json").exists()


def test_rejects_end_the_preparation_once_the_rest_cannot_make_up_for_them(tmp_path: Path):
    lines = [line if number % 30 else "broken" for number, line in enumerate(_lines() * 10)]
    assert len("\n".join(lines)) > 3 << 20
    with pytest.raises(
        ValueError, match=r"rows that are still unread; the first is .*, line 2:.*those so far are in"
    ) as error:
        lines[0] = "clicked,price,shop"
        lines[1] = "broken"
        _prepare(tmp_path, _bytes(lines), piece_mib=1, threads=1)
    rejected, of = (int(word) for word in str(error.value).split(" rows were")[0].split(" of "))
    assert 0.01 * of < rejected < of < len(lines)


def test_of_a_small_file_all_rejects_are_listed_with_the_same_guess(tmp_path: Path):
    with pytest.raises(ValueError, match=r"20 of 20 rows were rejected.*divided by '\|' and not by ','.*all are in"):
        _prepare(tmp_path, _bytes(["1|2|a"] * 20), TextFormat(columns=("clicked", "price", "shop")))
    assert len((tmp_path / "data.rejects.jsonl").read_text().splitlines()) == 20
