"""A skip for a reason that is not in the list fails the run."""

import pytest

pytest_plugins = ["pytester"]


def test_a_skip_that_is_not_in_the_list_fails(pytester: pytest.Pytester):
    pytester.makeconftest("from skips import pytest_make_collect_report, pytest_runtest_makereport")
    pytester.makepyfile(
        test_allowed="import pytest\ndef test():\n    pytest.skip('PostgreSQL is not installed')",
        test_marked="import pytest\n@pytest.mark.skipif(True, reason='too slow today')\ndef test(): pass",
        test_inside="import pytest\ndef test():\n    pytest.skip('vectors are absent')",
        test_expected="import pytest\n@pytest.mark.xfail\ndef test(): assert False",
    )
    result = pytester.runpytest("-p", "no:xdist")
    result.assert_outcomes(skipped=1, failed=1, errors=1, xfailed=1)
    result.stdout.fnmatch_lines_random(
        [
            "*test_marked.py::test: skipped with a reason that tests/skips.py does not allow: *too slow today",
            "*test_inside.py::test: skipped with a reason that tests/skips.py does not allow: *vectors are absent",
        ]
    )


def test_a_module_that_skips_itself_fails(pytester: pytest.Pytester):
    pytester.makeconftest("from skips import pytest_make_collect_report, pytest_runtest_makereport")
    pytester.makepyfile("import pytest\npytest.skip('no wheel here', allow_module_level=True)")
    result = pytester.runpytest("-p", "no:xdist")
    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*skipped with a reason that tests/skips.py does not allow: *no wheel here"])
