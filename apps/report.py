"""Shows a search, with its finalists beside the supernet's predictions, as one page."""

import json
from dataclasses import asdict
from pathlib import Path

from nasrec_torchrec.cli import run
from nasrec_torchrec.runs.files import write_text
from nasrec_torchrec.search.finalists import FINALISTS, agreement, read_finalists
from nasrec_torchrec.search.report import REPORT, write_report
from nasrec_torchrec.search.results import read_results


def main(search: Path, finalists: tuple[Path, ...] = ()) -> None:
    """Writes report.html anew, and finalists.json.

    Args:
        search: folder that apps.search wrote.
        finalists: run folders of apps.train, each with one or several of the search's architectures.
    """
    trained = read_finalists(finalists, read_results(search).candidates)
    if trained:
        records = [asdict(finalist) | {"mean": finalist.mean} for finalist in trained]
        # The test split is for the winner alone: who chooses by it must not report it.
        for record in records[1:]:
            del record["test_log_loss"], record["test_auc"]
        write_text(search / FINALISTS, json.dumps({"kendall_tau": agreement(trained), "finalists": records}, indent=2))
    write_report(search, trained)
    print(search / REPORT)


if __name__ == "__main__":
    run(main)
