from html.parser import HTMLParser
from typing import Any

import pytest

from nasrec_torchrec.page_style import bars, calibration_curve, table
from nasrec_torchrec.search.race.adoption import adoption


def _measured(difference: dict[str, Any] | None) -> dict[str, Any]:
    baseline = {"title": "dcn 64"} | ({"difference": difference} if difference else {})
    return {"winner": {"title": "NASRecNet 3"}, "baseline": baseline}


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (-0.003, -0.001, "Adopt NASRecNet 3: its test log loss is lower than that of the best tuned baseline, dcn 64, "
         "by 0.00200 (95 % interval 0.00100 to 0.00300, over 500 paired rows and 3 and 2 seeds)."),
        (-0.003, 0.001, "No difference shown: NASRecNet 3 won, and its test log loss is lower"),
        (0.001, 0.003, "Worse: NASRecNet 3 won on validation, but its test log loss is higher than that of the best "
         "tuned baseline, dcn 64, by 0.00200 (95 % interval 0.00100 to 0.00300"),
    ],
)  # fmt: skip
def test_the_interval_decides(low: float, high: float, expected: str):
    found = {"mean": (low + high) / 2, "low": low, "high": high, "rows": 500, "seeds": [3, 2]}
    assert adoption(_measured(found), "test").startswith(expected)


def test_a_baseline_that_won_and_none_that_took_part():
    assert adoption(_measured(None), "test").startswith("No difference: the best tuned baseline won")
    assert adoption({"winner": {"title": "NASRecNet 3"}}, "test") == ""


def test_a_race_that_compared_nothing_says_so():
    rows = [{"model": "dcn 64", "baseline": True, "seeds": seeds} for seeds in (1, 3)]
    alone = adoption(_measured(None), "test", rows[:1])
    assert alone.startswith("Nothing was compared: the race held only one training, of dcn 64, so it cannot say")
    assert "only one configuration, with 3 seeds, of dcn 64" in adoption(_measured(None), "test", rows[1:])
    assert "Nothing was compared" in adoption({"winner": {"title": "NASRecNet 3"}}, "test", rows[:1])
    baselines = adoption(_measured(None), "test", rows)
    assert baselines.startswith("Only baselines were compared: the race held 2 configurations, and no searched network")
    searched = [*rows, {"model": "NASRecNet 3", "baseline": False, "seeds": 1}]
    assert adoption(_measured(None), "test", searched).startswith("No difference: the best tuned baseline won")


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_tables_can_be_read_aloud_and_scroll_by_keyboard():
    tags = _Tags(table("a <b>", ["model", "loss"], [["x & y", "0.5"], ["z", "1,000.0"]])).tags
    assert ("div", {"class": "table", "role": "region", "tabindex": "0", "aria-label": "a <b>"}) in tags
    assert [attributes["scope"] for tag, attributes in tags if tag == "th"] == ["col", "col", "row", "row"]
    assert [attributes.get("class") for tag, attributes in tags if tag == "td"] == ["n", "n"]


def test_a_calibration_curve_says_what_it_shows():
    drawn = calibration_curve([{"rows": 5, "prediction": 0.1, "click_rate": 0.2}], "rates & predictions")
    assert "role='img'" in drawn and "<title>rates &amp; predictions</title>" in drawn and drawn.count("<circle") == 1


def test_bars_have_names_and_a_description():
    drawn = bars([("a<b", 0.2, 0.01), ("harmful", -0.05, 0.02)], "rise of the loss: a<b 0.2, harmful -0.05")
    assert drawn.count("<rect ") == 2 and "a&lt;b</text>" in drawn
    assert "<title>rise of the loss: a&lt;b 0.2, harmful -0.05</title>" in drawn and "NaN" not in drawn
    assert "<svg role='img'" in bars([("none", 0.0, 0.0)], "nothing")
