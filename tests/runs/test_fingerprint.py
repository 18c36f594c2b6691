import pytest

from nasrec_torchrec.runs.fingerprint import code_of, differences, digest, fingerprint, require_same


def test_a_difference_is_named_with_both_values():
    first = fingerprint(data="a" * 16, settings={"seed": 0, "rates": (0.1, 0.2)}, code={})
    assert first == {"data": "a" * 16, "settings.seed": 0, "settings.rates": [0.1, 0.2]}
    assert differences(first, dict(reversed(first.items()))) == []
    second = fingerprint(data="b" * 16, settings={"seed": 1, "rates": [0.1, 0.2], "new": None})
    expected = [f"data: {'a' * 16} there, {'b' * 16} here", "settings.seed: 0 there, 1 here"]
    assert differences(first, second) == [*expected, "settings.new: nothing there, null here"]
    with pytest.raises(
        ValueError, match=r"run: was made of other inputs \(data: .*; settings.seed: .*\); another --out"
    ):
        require_same("run", first, second, "another --out")
    for unknown in (None, [], "x"):
        with pytest.raises(ValueError, match="run: does not say what it was made of, an earlier version wrote it"):
            require_same("run", unknown, second, "another --out")
    require_same("run", first, first, "another --out")


def test_digests_are_of_content():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
    assert digest("text") == digest(b"text") and len(digest("")) == 16


def test_the_code_of_a_plugin_is_its_sources(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "package_of_mine").mkdir()
    files = [tmp_path / "module_of_mine.py", tmp_path / "package_of_mine" / "operators.py"]
    for file in [*files, tmp_path / "package_of_mine" / "__init__.py"]:
        file.write_text("WIDTH = 1\n")
    names = ("module_of_mine", "package_of_mine")
    before = code_of(names)
    assert code_of(names) == before and set(before) == set(names)
    for file, name in zip(files, names, strict=True):
        file.write_text("WIDTH = 2\n")
        assert [other for other in names if code_of(names)[other] != before[other]] == [name]
        before = code_of(names)
