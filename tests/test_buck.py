"""The BUCK files, evaluated by a Starlark interpreter: Buck itself is in no package registry."""

from pathlib import Path
from typing import Any

import pytest
import starlark
from buck_files import FOLDERS, PLACEHOLDER, PUBLIC_LABELS, ROOT, generated, imports, sources

RULES = ("python_library", "python_binary", "python_test")


def _evaluate(file: Path) -> list[dict[str, Any]]:
    targets: list[dict[str, Any]] = []
    module = starlark.Module()

    def rule(kind: str):
        def declare(**attributes: Any) -> None:
            targets.append({"rule": kind} | attributes)

        return declare

    for kind in RULES:
        module.add_callable(kind, rule(kind))
    starlark.eval(module, starlark.parse(file.name, file.read_text()), starlark.Globals.standard())
    return targets


@pytest.fixture(scope="module")
def targets() -> dict[str, dict[str, Any]]:
    """All targets by label, with full labels as deps and paths from the root as sources."""
    found: dict[str, dict[str, Any]] = {}
    for file in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("BUCK")):
        package = file.parent.relative_to(ROOT)
        for target in _evaluate(file):
            label = f"//{package}:{target['name']}"
            assert label not in found, f"{label} is declared twice"
            deps = [f"//{package}{dep}" if dep.startswith(":") else dep for dep in target.get("deps", [])]
            found[label] = target | {"deps": deps, "srcs": [package / name for name in target.get("srcs", [])]}
    return found


def test_the_committed_files_are_what_is_generated():
    for path, text in generated().items():
        assert (ROOT / path).exists() and (ROOT / path).read_text() == text, f"{path}: run `make buck`"


def test_every_source_file_is_in_exactly_one_target(targets):
    assert sorted(source for target in targets.values() for source in target["srcs"]) == sources()


def test_every_dep_exists(targets):
    for label, target in targets.items():
        for dep in target["deps"]:
            known = dep in targets or dep in PUBLIC_LABELS.values() or dep.startswith(PLACEHOLDER)
            assert known, f"{label}: no target {dep}"


def test_no_cycles(targets):
    done: set[str] = set()

    def visit(label: str, path: tuple[str, ...]) -> None:
        assert label not in path, " -> ".join((*path[path.index(label) :], label))
        if label in targets and label not in done:
            for dep in targets[label]["deps"]:
                visit(dep, (*path, label))
            done.add(label)

    for label in targets:
        visit(label, ())


def test_a_binary_per_program_and_a_test_per_test_file(targets):
    programs = {file.stem for file in (ROOT / "apps").glob("*.py")} - {"__init__"}
    binaries = {label for label, target in targets.items() if target["rule"] == "python_binary"}
    assert {f"//apps:{name}" for name in programs} <= binaries
    tests = {source for target in targets.values() if target["rule"] == "python_test" for source in target["srcs"]}
    assert tests == {file for file in sources() if file.name.startswith("test_")}


def test_distribution_metadata_is_asked_for_in_one_place():
    """A Buck binary has no distribution metadata and no entry points."""
    for file in sources():
        if file.parts[0] in ("nasrec_torchrec", "apps", "components"):
            found = {module for module in imports(file) if module.startswith(("importlib.metadata", "pkg_resources"))}
            assert not found or file.as_posix() == "nasrec_torchrec/environment.py", file
