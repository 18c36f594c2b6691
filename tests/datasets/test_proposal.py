import math
import random
import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import run_program

from nasrec_torchrec.datasets.proposal import propose
from nasrec_torchrec.datasets.sampling import sample_table
from nasrec_torchrec.datasets.schema import Schema


def _rows(count: int = 2000) -> list[dict[str, object]]:
    generator = random.Random(0)
    rows = []
    for number in range(count):
        clicked = generator.random() < 0.3
        rows.append(
            {
                "row": number,
                "when": f"2024-01-{1 + number * 28 // count:02d}T{number % 24:02d}:00:00Z",
                "clicked": "yes" if clicked else "no",
                "paid": "7.5" if clicked else "",
                "price": "NA" if number % 20 == 0 else round(2 ** generator.uniform(0, 12), 2),
                "shop": f"shop {generator.randrange(30)}",
                "tags": "|".join(generator.sample("abcde", generator.randrange(1, 4))),
                "country": "DE",
                "signed_up": f"2023-{1 + number % 12:02d}-03",
            }
        )
    return rows


def _write(file: Path, rows: list[dict[str, object]], delimiter: str) -> Path:
    lines = [delimiter.join(rows[0]), *(delimiter.join(map(str, row.values())) for row in rows)]
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_proposed_schema_is_prepared_as_it_is(tmp_path: Path, delimiter: str):
    file, schema = _write(tmp_path / "log.csv", _rows(), delimiter), tmp_path / "schema.yaml"
    done = run_program("nasrec", "prepare", "init", "--source", file, "--out", schema)
    assert done.returncode == 0, done.stderr
    assert "warning: 'paid' alone tells the label" in done.stderr

    found = Schema.read(schema)
    assert found.label_values == (("no", 0), ("yes", 1))
    assert [(feature.name, feature.transform) for feature in found.dense] == [("price", "log1p")]
    assert [(feature.name, feature.multi_hot) for feature in found.sparse] == [
        *(("shop", False), ("tags", True)),
        ("price_buckets", False),
    ]
    assert found.text.delimiter == delimiter and "NA" in found.text.missing
    assert found.split is not None and (found.split.split, found.split.split_column) == ("time", "when")
    assert "#   country: always DE" in schema.read_text() and "#   paid: tells the label alone" in schema.read_text()

    done = run_program("nasrec", "prepare", "table", "--source", file, "--schema", schema, "--out", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert '"rejected": 0' in done.stdout

    # What could be computed from times is there as comments, which can be used as they are.
    schema.write_text(schema.read_text().replace("  # - ", "  - "))
    more = Schema.read(schema)
    assert [(feature.ids, feature.of) for feature in more.sparse if feature.of] == [
        ("hour", "when"),
        ("weekday", "when"),
    ]
    assert [(feature.age_of, feature.at) for feature in more.dense if feature.age_of] == [("signed_up", "when")]
    sources = ["--source", file, "--schema", schema, "--out", tmp_path / "more"]
    assert '"rejected": 0' in run_program("nasrec", "prepare", "table", *sources).stdout


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["low", "high", "low"], "label 'clicked': found 'low' 66.7%, 'high' 33.3%; say by --positive which of them"),
        (["1", "2", "3"], "expected two values, found '1' 33.3%, '2' 33.3%, '3' 33.3%; --label_above X makes"),
        (["1", "1", "1"], "expected two values, found '1' 100.0%; both are needed"),
    ],
)
def test_a_label_that_does_not_say_what_a_click_is_is_refused(labels: list[str], message: str):
    with pytest.raises(ValueError, match="label 'clicked'") as error:
        Schema.infer(pa.table({"clicked": labels, "shop": ["a", "b", "a"]}))
    assert message in str(error.value)


def test_a_table_in_memory_has_a_schema_too():
    schema = Schema.infer(pa.table({"label": [0, 1] * 60, "shop": ["a", "b", "c"] * 40, "age": [0.5, 7.25, 3.5] * 40}))
    assert schema.feature_names == ["shop", "age_buckets"] and [feature.name for feature in schema.dense] == ["age"]


def test_a_table_of_numbers_alone_has_their_ranges_as_categories(tmp_path: Path):
    rows = [{"label": number % 2, "mean radius": 0.37 * number + (number % 2)} for number in range(200)]
    file = _write(tmp_path / "rows.csv", rows, ",")
    run_program("nasrec", "prepare", "init", "--source", file, "--label", "label", "--out", tmp_path / "s.yaml")
    schema = Schema.read(tmp_path / "s.yaml")
    assert [feature.name for feature in schema.sparse] == ["mean radius_buckets"]
    with pytest.raises(ValueError, match=r"no column can be a feature; columns were left out because: \{'same'"):
        Schema.infer(pa.table({"label": [0, 1] * 60, "same": ["a"] * 120}))


def test_a_file_without_names_of_columns_is_refused_with_its_first_lines(tmp_path: Path):
    (tmp_path / "log.csv").write_text("1,2.5,a\n0,3.5,b\n")
    done = run_program("nasrec", "prepare", "init", "--source", tmp_path / "log.csv")
    assert done.returncode == 2
    assert "line 1 holds ['1', '2.5'], which look like values" in done.stderr and "1,2.5,a" in done.stderr


def test_whole_numbers_beyond_what_a_float_tells_apart_are_names():
    hashes = [10**17 + number for number in range(50)] * 4
    signed = [(-1) ** number * (2**62 + number) for number in range(50)] * 4
    moments = [(1_730_000_000 + number) * 10**9 for number in range(200)]
    clicked = [int(number % 7 < 2) for number in range(200)]
    columns = {"hash": hashes, "signed": signed, "time": moments, "clicked": clicked}
    for table in (pa.table(columns), pa.table({name: list(map(str, column)) for name, column in columns.items()})):
        found = Schema.infer(table, label="clicked")
        assert [feature.name for feature in found.sparse] == ["hash", "signed"]
        assert not found.dense and found.split is not None and found.split.split_column == "time"


def test_what_a_file_holds_cannot_command_the_terminal(tmp_path: Path):
    rows = [
        {"clicked": number % 2, "shop": f"\x1b[31m{number % 7}", "\x1b[2Jevil": number % 5} for number in range(200)
    ]
    file, schema = _write(tmp_path / "log.csv", rows, ","), tmp_path / "schema.yaml"
    done = run_program("nasrec", "prepare", "init", "--source", file, "--out", schema)
    assert done.returncode == 0, done.stderr
    assert "\\x1b[31m0" in done.stdout and "\\x1b[2Jevil" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr + schema.read_text()

    done = run_program("nasrec", "prepare", "init", "--source", file, "--label", "\x1b[2Jevil", "--out", schema)
    assert done.returncode == 2 and "\x1b" not in done.stderr


def test_the_command_that_is_printed_accepts_the_rejects_of_the_sample(tmp_path: Path):
    file, schema, data = _write(tmp_path / "log.csv", _rows(), ","), tmp_path / "schema.yaml", tmp_path / "data"
    lines = file.read_text().splitlines()
    lines[5::20] = [line.rpartition(",")[0] for line in lines[5::20]]
    file.write_text("\n".join(lines) + "\n")
    done = run_program("nasrec", "prepare", "init", "--source", file, "--out", schema)
    assert "warning: 5.0% of the rows will be lost, more than the 1%" in done.stderr
    command = done.stdout.splitlines()[-1].strip()
    assert command.endswith("--max_rejects 0.06") and command in schema.read_text()
    done = run_program(*command.replace("DATA", str(data)).split())
    assert done.returncode == 0 and '"rejected": 100' in done.stdout


def test_columns_that_cannot_be_read_are_left_out_with_their_types(tmp_path: Path):
    table = pa.Table.from_pylist([row | {"price": str(row["price"])} for row in _rows(300)])
    count = table.num_rows
    table = table.append_column("digest", pa.array([bytes([255, number % 251]) for number in range(count)]))
    table = table.append_column("name", pa.array([f"n{number % 5}".encode() for number in range(count)]))
    table = table.append_column("pairs", pa.array([[("a", 1)]] * count, pa.map_(pa.string(), pa.int64())))
    pq.write_table(table, tmp_path / "log.parquet")
    words = ["--source", tmp_path / "log.parquet", "--label", "clicked", "--out", tmp_path / "schema.yaml"]
    done = run_program("nasrec", "prepare", "init", *words)
    assert done.returncode == 0, done.stderr
    for name, kind in (("digest", "binary"), ("pairs", "map<string, int64")):
        (line,) = (line for line in done.stdout.splitlines() if line.startswith(name))
        assert f"values of type {kind}" in line and "cannot be read" in line, done.stdout
    assert "name" in {feature.name for feature in Schema.read(tmp_path / "schema.yaml").sparse}


def test_numbers_and_dates_as_some_countries_write_them_are_left_out_aloud(tmp_path: Path):
    draw, file, schema = random.Random(0), tmp_path / "log.csv", tmp_path / "schema.yaml"
    lines = ["geklickt;Preis;Rabatt;geboren;am;version;pair"]
    for number in range(400):
        price = f"1.{draw.randrange(100, 999)},{draw.randrange(100):02d}" if number % 9 == 0 else f"{number % 50},5"
        discount = "-" if number % 3 == 0 else f"{draw.randrange(30)},{draw.randrange(10)}"
        day = f"{1 + number % 28:02d}.{1 + number % 12:02d}"
        pair = ",".join(draw.sample("12345", 1 + number % 3))
        lines.append(
            f"{number % 4 // 3};{price};{discount};{day}.{1950 + number % 50};{day}.2026 08:15;1.2.{number % 9};{pair}"
        )
    file.write_text("\n".join(lines) + "\n")
    done = run_program("nasrec", "prepare", "init", "--source", file, "--label", "geklickt", "--out", schema)
    assert done.returncode == 0, done.stderr
    for name in ("Preis", "Rabatt"):
        assert f"warning: '{name}' seems to hold numbers with a decimal comma, such as '" in done.stderr
    assert """with CAST(replace(replace("Preis", '.', ''), ',', '.') AS DOUBLE)""" in done.stderr
    assert """with CAST(replace("Rabatt", ',', '.') AS DOUBLE)""" in done.stderr
    for name in ("geboren", "am"):
        assert f"warning: '{name}' seems to hold dates that are not in ISO 8601, such as '" in done.stderr
    assert [(feature.name, feature.multi_hot) for feature in Schema.read(schema).sparse] == [
        ("version", False),
        ("pair", True),
    ]
    assert "#   Preis: a number with a comma: convert it to use it" in schema.read_text()


def test_percentages_are_words_aloud(tmp_path: Path):
    draw, file, schema = random.Random(0), tmp_path / "log.csv", tmp_path / "schema.yaml"
    lines = ["clicked;rate;share;each;note"]
    for number in range(400):
        share = "none" if number % 10 == 0 else f"{draw.randrange(40)},5 %"
        note = "100%" if number % 5 == 0 else draw.choice(("cotton", "wool"))
        lines.append(f"{number % 4 // 3};{draw.randrange(5, 60)}%;{share};{number / 7:.4f}%;{note}")
    file.write_text("\n".join(lines) + "\n")
    done = run_program("nasrec", "prepare", "init", "--source", file, "--label", "clicked", "--out", schema)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "percentages" in line]
    words = "they are taken for words, not for numbers"
    for warning, name, share, taken, remedy in zip(
        warnings,
        ("rate", "share", "each"),
        ("100.0%", "90.0%", "100.0%"),
        (words, words, "the column is left out"),
        ("replace(\"rate\", '%', '')", "replace(replace(\"share\", '%', ''), ',', '.')", "replace(\"each\", '%', '')"),
        strict=True,
    ):
        assert warning.startswith(f"warning: '{name}': {share} of the values look like percentages, such as '"), warning
        assert taken in warning and warning.endswith(f"with TRY_CAST({remedy} AS DOUBLE) / 100"), warning
    assert {feature.name: feature.multi_hot for feature in Schema.read(schema).sparse} == {
        "rate": False,
        "share": False,
        "note": False,
    }
    assert "90.0% of the texts are percentages, taken for words" in schema.read_text()


@pytest.mark.parametrize(
    ("form", "remedy"),
    [
        ("%d.%m.%Y", "strptime({}, '%d.%m.%Y')"),
        ("%m/%d/%Y", "strptime({}, '%m/%d/%Y')"),
        ("%m/%d/%y %I:%M %p", "strptime({}, '%m/%d/%y %I:%M %p')"),
        ("%Y/%m/%d %H:%M:%S", "strptime({}, '%Y/%m/%d %H:%M:%S')"),
        ("%d.%m.%Y, %H:%M:%S.%f", "strptime({}, '%d.%m.%Y, %H:%M:%S.%f')"),
        ("%d-%b-%Y", "strptime({}, '%d-%b-%Y')"),
        ("%B %d, %Y", "strptime({}, '%B %d, %Y')"),
        ("%d/%b/%Y:%H:%M:%S +0200", "strptime({}, '%d/%b/%Y:%H:%M:%S %z')"),
        ("%a, %d %b %Y %H:%M:%S GMT", "strptime({}, '%a, %d %b %Y %H:%M:%S GMT')"),
        ("%Y%m%d", "strptime(CAST({} AS VARCHAR), '%Y%m%d')"),
    ],
)
@pytest.mark.parametrize("typed", [False, True])
def test_a_date_of_another_form_is_left_out_with_what_reads_it(form: str, remedy: str, typed: bool):
    moments = [datetime(2024, 1, 1, 5, 30, tzinfo=UTC) + timedelta(hours=31 * number) for number in range(200)]
    words: list = [moment.strftime(form) for moment in moments]
    if typed and form == "%Y%m%d":
        words = list(map(int, words))
    table = pa.table({"clicked": [0, 1] * 100, "shop": ["a", "a", "b", "b"] * 50, 'the "day"': words})
    proposal = propose(sample_table(table))
    (column,) = (choice for choice in proposal.choices if choice.column.name == 'the "day"')
    assert column.role == "left out" and column.column.kind == "date, not ISO"
    (warning,) = (warning for warning in proposal.warnings if "ISO" in warning)
    sql = remedy.format('"the ""day"""')
    assert warning.endswith(f"(--source duckdb --query) with {sql}"), warning
    duckdb = pytest.importorskip("duckdb")
    ((read,), *_) = duckdb.arrow(table).query("rows", f"SELECT {sql} FROM rows").fetchall()
    assert read.date() == moments[0].date()


def test_a_date_that_may_begin_with_the_day_or_the_month_is_said_to():
    words = [f"0{1 + number % 9}/0{1 + number % 8}/2024" for number in range(200)]
    table = pa.table({"clicked": [0, 1] * 100, "shop": ["a", "a", "b", "b"] * 50, "day": words})
    (warning,) = (warning for warning in propose(sample_table(table)).warnings if "ISO" in warning)
    assert warning.endswith("""strptime("day", '%d/%m/%Y'), or with '%m/%d/%Y', which fits the sample too""")


def test_versions_and_numbers_of_people_are_no_dates():
    count = 200
    columns = {
        "version": [f"{number % 3}.{number % 9}.{10 + number % 20}" for number in range(count)],
        "insured": [f"{100 + number % 90}-12-{1000 + number % 80}" for number in range(count)],
        "amount": [20240100 + number for number in range(count)],
    }
    table = pa.table({"clicked": [number % 2 for number in range(count)], **columns})
    assert not propose(sample_table(table)).warnings


def test_the_share_of_rows_that_a_column_of_numbers_rejects_is_accepted_by_the_printed_command(tmp_path: Path):
    draw, schema = random.Random(0), tmp_path / "schema.yaml"
    rows = [{"clicked": draw.random() < 0.5, "shop": draw.choice("abc"), "price": draw.random()} for _ in range(1000)]
    for number in range(0, 1000, 50):
        rows[number]["price"] = math.inf
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "log.parquet")
    lines = [f"{row['clicked']:d},{row['shop']},{row['price']}" for row in rows]
    lines = [line.replace("inf", f"{number} EUR") for number, line in enumerate(lines)]
    (tmp_path / "log.csv").write_text("\n".join(["clicked,shop,price", *lines, ""]))
    for file, found, remedy in (("log.parquet", "'inf'", ""), ("log.csv", "EUR'", "name it by --missing")):
        words = "--source", tmp_path / file, "--label", "clicked", "--out", schema, "--overwrite", "true"
        done = run_program("nasrec", "prepare", "init", *words)
        assert done.returncode == 0, done.stderr
        assert "warning: 'price': 2.00% of the values are no finite numbers, such as" in done.stderr
        assert found in done.stderr and remedy in done.stderr
        command = shlex.split(done.stdout.splitlines()[-1])
        assert command[-2:] == ["--max_rejects", "0.03"]
        command[command.index("DATA")] = str(tmp_path / f"data-{file}")
        done = run_program(*command)
        assert done.returncode == 0, done.stderr


def test_lists_of_fractions_are_not_called_empty():
    vectors = pa.array([[0.5, 1.25]] * 100, pa.list_(pa.float32(), 2))
    table = pa.table({"clicked": [0, 1] * 50, "shop": ["a", "a", "b", "b"] * 25, "vector": vectors})
    (choice,) = (one for one in propose(sample_table(table)).choices if one.column.name == "vector")
    assert choice.role == "left out" and "with fractions cannot be read" in choice.why


def test_values_that_span_lines_are_said_to_be_read_by_duckdb(tmp_path: Path):
    file = tmp_path / "log.csv"
    notes = ['"two\nlines"', *["plain"] * 9] * 30
    lines = [f"{number % 2},{'abc'[number % 3]},{note}" for number, note in enumerate(notes)]
    file.write_text("clicked,shop,note\n" + "\n".join(lines) + "\n")
    done = run_program("nasrec", "prepare", "init", "--source", file, "--label", "clicked")
    assert "60 lines of the sample are not rows" in done.stderr and "DuckDB reads them" in done.stderr
