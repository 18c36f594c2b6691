"""A proposed schema as text: the table that is printed, and the commented file that is written."""

import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from tabulate import tabulate

from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig, TextFormat
from nasrec_torchrec.datasets.features import MOMENT_IDS, DenseFeature, SparseFeature
from nasrec_torchrec.datasets.profile import Column
from nasrec_torchrec.datasets.proposal import Choice, Proposal, accepted, is_moment
from nasrec_torchrec.messages import printable
from nasrec_torchrec.runs.redaction import redact

_WIDE = 34


def table(proposal: Proposal) -> str:
    """Returns a table for people: a line for each column, with what was seen of it and what it becomes."""
    rows = [
        (
            _cut(choice.column.name, 24),
            choice.column.kind if not choice.column.unit else f"number ({choice.column.unit}?)",
            _cut(", ".join(word for word, _ in choice.column.common), 28),
            f"{choice.column.distinct:,}",
            f"{choice.column.missing_share:.1%}" if choice.column.missing else "",
            "" if choice.column.auc is None else f"{choice.column.auc:.3f}",
            _becomes(choice),
            _cut(choice.why, 60),
        )
        for choice in proposal.choices
    ]
    head = ("column", "type", "examples", "distinct", "missing", "AUC alone", "becomes", "why")
    align = ("left", "left", "left", "right", "right", "right", "left", "left")
    return tabulate(rows, head, "simple", colalign=align, disable_numparse=True)


def summary(proposal: Proposal) -> str:
    """Returns a line about the rows and the label."""
    sample, schema = proposal.sample, proposal.schema
    read = sample.table.num_rows
    of = "all of them" if sample.whole else f"of {'' if sample.text is None else 'about '}{sample.rows:,}"
    files = f" in {len(sample.files)} file{'s' if len(sample.files) > 1 else ''}" if sample.files else ""
    shares = ", ".join(f"{word} {share:.1%}" for word, share in proposal.label[:4])
    return f"{read:,} rows{files} ({of}); label '{schema.label}': {shares}"


def to_yaml(proposal: Proposal, then: str = "") -> str:
    """Returns the schema as YAML, with what was seen in comments.

    Args:
        proposal: schema to write.
        then: how it is prepared, for the head.
    """
    schema = proposal.schema
    lines = [f"# Proposed from {summary(proposal)}.", "# Change what you know better."]
    if then:
        lines += ["# Then:", f"#   {then}"]
    lines += ["", _key("label", schema.label)]
    if schema.label_values:
        lines.append(_key("label_values", dict(schema.label_values)))
    if schema.label_above is not None:
        lines.append(_key("label_above", schema.label_above))
    lines.append(_key("embedding_dim", schema.embedding_dim))
    text = _differing(schema.text, TextFormat())
    if text or proposal.sample.text is not None:
        lines.append(_key("text", text or {"delimiter": schema.text.delimiter}))
    if schema.split is not None:
        split = {"split": schema.split.split} | _differing(schema.split, SplitConfig())
        lines += [_split_comment(proposal), _key("split", split)]
    for role, features in (("dense", schema.dense), ("sparse", schema.sparse)):
        lines += ["", f"{role}:" if features else f"{role}: []"]
        lines += [_entry(choice) for choice in proposal.choices if choice.role == role]
        lines += _of_moments(proposal, role)
    if buckets := [feature for feature in schema.sparse if feature.ids == "buckets"]:
        lines += ["  # The numbers again, by the range in which they lie: an embedding for each of up to 65 ranges."]
        for item in buckets:
            lines.append(f"  - {_flow({'name': item.name, 'ids': item.ids, 'cross': list(item.cross)})}")
    out = [choice for choice in proposal.choices if choice.role in ("leak", "left out")]
    if out:
        lines += ["", "# Left out; move a line up to use its column:"]
        lines += [f"#   {_cut(choice.column.name, 60)}: {_comment(choice)}" for choice in out]
    return "\n".join(lines) + "\n"


def command(proposal: Proposal, source: str, schema: Path | str, query: str | None = None) -> str:
    """Returns the command line that prepares the files, or the rows of a query, without a password of the source."""
    lost = proposal.rejected
    more = f" --max_rejects {accepted(lost):g}" if lost > PreparationConfig.max_rejects else ""
    more += "" if query is None else f" --query {shlex.quote(query)}"
    source, schema = shlex.quote(redact(source)), shlex.quote(str(schema))
    return f"nasrec prepare table --source {source} --schema {schema} --out DATA{more}"


def as_document(proposal: Proposal) -> dict[str, Any]:
    """Returns the proposal as JSON values, for programs."""
    columns = [
        {item.name: getattr(choice.column, item.name) for item in fields(Column)}
        | {"becomes": choice.role, "why": choice.why}
        for choice in proposal.choices
    ]
    sample = proposal.sample
    return {
        "rows": sample.rows,
        "sampled": sample.table.num_rows,
        "label": {"name": proposal.schema.label, "values": dict(proposal.label)},
        "columns": columns,
        "warnings": list(proposal.warnings),
        "schema": proposal.schema.to_dict(),
    }


def _of_moments(proposal: Proposal, role: str) -> list[str]:
    """Features that could be computed from the columns of moments, as comments."""
    names = [c.column.name for c in proposal.choices if c.role in ("split", "left out") and is_moment(c.column)]
    split = proposal.schema.split
    own = split.split_column if split is not None and split.split == "time" else None
    found: list[dict[str, str]] = []
    if role == "sparse":
        of = names if own is None else [own]
        found = [{"name": f"{_bare(name)}_{kind}", "ids": kind, "of": name} for name in of for kind in MOMENT_IDS]
    elif own is not None:
        others = [name for name in names if name != own]
        found = [
            {"name": f"days_since_{_bare(name)}", "transform": "log1p", "age_of": name, "at": own} for name in others
        ]
    if not found:
        return []
    return [
        "  # What can be computed from times; remove the # of what may help:",
        *(f"  # - {_flow(one)}" for one in found),
    ]


def _bare(name: str) -> str:
    return name.replace(".", "_")


def _becomes(choice: Choice) -> str:
    feature = choice.feature
    if isinstance(feature, DenseFeature):
        return f"dense, {feature.transform}"
    if isinstance(feature, SparseFeature):
        return f"sparse, {feature.ids}" + (", lists" if feature.multi_hot else "")
    return "LEAK, left out" if choice.role == "leak" else choice.role


def _entry(choice: Choice) -> str:
    feature = choice.feature
    assert feature is not None
    if isinstance(feature, DenseFeature):
        settings: dict[str, Any] = {"name": feature.name, "transform": feature.transform}
        settings |= {"column": feature.column} if feature.column else {}
    else:
        settings = {"name": feature.name, "ids": feature.ids}
        settings |= _differing(feature, SparseFeature(feature.name, feature.num_embeddings, feature.ids))
        if feature.num_embeddings is not None:
            settings["num_embeddings"] = feature.num_embeddings
    text = f"  - {_flow(settings)}"
    return f"{text:<{2 * _WIDE}}  # {_comment(choice)}"


def _comment(choice: Choice) -> str:
    column = choice.column
    parts = [choice.why]
    if column.common and choice.role != "dense":
        parts.append("most often " + ", ".join(f"{_cut(word, 20)!r} {share:.1%}" for word, share in column.common[:2]))
    if column.missing:
        parts.append(f"{column.missing_share:.1%} missing")
    if column.auc is not None and choice.role != "leak":
        parts.append(f"AUC {column.auc:.2f} alone")
    return "; ".join(parts).replace("\n", " ").replace("\r", " ")


def _split_comment(proposal: Proposal) -> str:
    split = proposal.schema.split
    assert split is not None
    if split.split == "time":
        return "# The earliest 80 % of the rows are for training, the next 10 % for validation, the latest for test."
    return "# No column says when a row happened: rows are divided at random, 80 / 10 / 10, with equal click rates."


def _differing(value: Any, base: Any) -> dict[str, Any]:
    """The fields in which a value differs from one with all defaults."""
    found = {item.name: getattr(value, item.name) for item in fields(value)}
    differing = {name: entry for name, entry in found.items() if entry != getattr(base, name)}
    return {name: list(entry) if isinstance(entry, tuple) else entry for name, entry in differing.items()}


def _key(name: str, value: Any) -> str:
    return f"{name}: {_flow(value)}"


def _flow(value: Mapping[str, Any] | Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return text.removesuffix("\n...\n").rstrip("\n")


def _cut(text: str, width: int) -> str:
    text = printable(text)
    return text if len(text) <= width else text[: width - 1] + "…"
