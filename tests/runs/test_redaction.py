import json

import pytest

from nasrec_torchrec.datasets.pieces import write_rejects
from nasrec_torchrec.runs.redaction import redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://reader:Tr0ub4dor@host:81/log.csv.gz", "http://***@host:81/log.csv.gz"),
        (
            "--storage 'postgresql+psycopg://me:p%40ss@db/x' --seed 3",
            "--storage 'postgresql+psycopg://***@db/x' --seed 3",
        ),
        ("simplecache::s3://key:s3cret@bucket/a, http://b:c@d/e", "simplecache::s3://***@bucket/a, http://***@d/e"),
        ("sqlite:///file:/x/study.db?uri=true&password=Tr0ub4dor", "sqlite:///file:/x/study.db?uri=true&password=***"),
        (
            "https://s/x?X-Amz-Credential=AK/1&X-Amz-Signature=ab12&b=1",
            "https://s/x?X-Amz-Credential=***&X-Amz-Signature=***&b=1",
        ),
        ("https://account/x?sv=1&sig=abc%2B&se=2", "https://account/x?sv=1&sig=***&se=2"),
        ("api_key=abc; Token=def", "api_key=***; Token=***"),
        ("num_tokens=16, signal=3, design=4, --seed 0 a@b.c ssh git@host:x", None),
        ("s3://bucket/some@name/x", None),
    ],
)
def test_secrets_are_hidden_and_nothing_else(text, expected):
    assert redact(text) == (text if expected is None else expected)


def test_rejected_rows_do_not_hold_the_password_of_their_file(tmp_path):
    write_rejects(tmp_path / "rejects", "http://reader:Tr0ub4dor@host/log.csv", {3: "no label"})
    assert json.loads((tmp_path / "rejects").read_text()) == {
        "file": "http://***@host/log.csv",
        "line": 3,
        "reason": "no label",
    }


def test_values_of_secret_variables_are_hidden(monkeypatch):
    monkeypatch.setenv("COMPANY_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("COMPANY_TOKEN_FILE", "/run/secrets/token")
    monkeypatch.setenv("COMPANY_TOKEN", "ab")
    assert redact("cannot sign with wJalrXUtnFEMI from /run/secrets/token, ab") == (
        "cannot sign with *** from /run/secrets/token, ab"
    )
