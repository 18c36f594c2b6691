import json
import math

from nasrec_torchrec.finite import is_better, json_text, order

BAD = (math.nan, math.inf, -math.inf, None)


def test_what_is_not_finite_is_never_better():
    for bad in BAD:
        assert is_better(1.0, bad) and is_better(-1.0, bad, higher=True)
        assert not is_better(bad, 1.0) and not is_better(bad, -1.0, higher=True)
        assert not any(is_better(bad, other) or is_better(bad, other, higher=True) for other in BAD)
    assert is_better(0.1, 0.2) and not is_better(0.2, 0.2) and is_better(0.2, 0.1, higher=True)
    assert sorted([3.0, math.nan, -1.0, None, 2.0], key=order)[:3] == [-1.0, 2.0, 3.0]
    assert min([math.nan, 0.7, math.inf], key=order) == 0.7


def test_json_holds_no_number_that_is_none():
    text = json_text({"loss": math.nan, "runs": [{"auc": math.inf}, (1.5, 2)], "name": "NaN", "rows": 3})
    assert json.loads(text) == {"loss": None, "runs": [{"auc": None}, [1.5, 2]], "name": "NaN", "rows": 3}
