from pathlib import Path

import pytest
from support import prepare_pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What races are run on; every test file prepares its own."""
    return prepare_pairs(tmp_path_factory.mktemp("pairs") / "data", 3000)
