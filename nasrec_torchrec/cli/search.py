"""``nasrec search``."""

import json
from typing import Any

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.search.jobs import SearchResult, run


def _document(result: SearchResult) -> dict[str, Any]:
    best = result.best
    return {
        "best": {"log_loss": best.loss, "architecture": json.loads(best.architecture.to_json())},
        "candidates": len(result.candidates),
        "report": str(result.report),
    }


PROGRAM = Program(
    run,
    example="nasrec search --supernet runs/supernet --data DATA --out runs/search --max_flops 300000 --top_k 5",
    groups={
        "How the search proceeds": ("recipe",),
        "Results, and where candidates are kept": ("top_k", "storage", "study", "resume"),
    },
    show=str,
    document=_document,
    resume="run the same command again to resume with the candidates that are finished",
)
