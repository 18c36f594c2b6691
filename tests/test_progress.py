import io
import re
import time

import pytest

from nasrec_torchrec.progress import progress_bar


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "total, shown, seen",
    [(10, True, True), (0, True, False), (10, False, False)],
    ids=["terminal", "nothing to do", "another rank"],
)
def test_a_bar_is_shown_on_a_terminal(total: int, shown: bool, seen: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr", stream := _Terminal())
    with progress_bar(total, "parse", "row", initial=2, shown=shown) as bar:
        bar.update(3)
        bar.set_postfix_str("fast")
    assert ("parse:  50%" in stream.getvalue()) == seen
    assert seen or not stream.getvalue()


def test_a_log_gets_a_line_now_and_then_and_none_of_what_is_short(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stderr", stream := io.StringIO())
    with progress_bar(10, "parse", "row") as bar:
        bar.update(10)
    assert not stream.getvalue()
    monkeypatch.setattr("nasrec_torchrec.progress._LOG_INTERVAL", 0.2)
    with progress_bar(8, "train", "step") as bar:
        for _ in range(8):
            time.sleep(0.06)
            bar.set_postfix(best="0.5", refresh=False)
            bar.update()
    lines = stream.getvalue().splitlines()
    assert 1 <= len(lines) <= 3
    for line in lines:
        assert re.fullmatch(r"train: \d+% of 8, +[\d.]+step/s, 00:0\d left, best=0\.5", line), line
