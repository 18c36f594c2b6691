import io

import pytest

from nasrec_torchrec.progress import progress_bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "stream, total, shown, seen",
    [
        (_Terminal(), 10, True, True),
        (_Terminal(), 0, True, False),
        (_Terminal(), 10, False, False),
        (io.StringIO(), 10, True, False),
    ],
    ids=["terminal", "nothing to do", "another rank", "log"],
)
def test_a_bar_is_shown_on_a_terminal_alone(
    stream: io.StringIO, total: int, shown: bool, seen: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stderr", stream)
    with progress_bar(total, "parse", "row", initial=2, shown=shown) as bar:
        bar.update(3)
        bar.set_postfix_str("fast")
    assert ("parse:  50%" in stream.getvalue()) == seen
    assert seen or not stream.getvalue()
