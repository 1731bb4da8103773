"""pyproject.toml declares what the packages import, and constraints.txt pins a version that it allows."""

from __future__ import annotations

import re
import sys
from functools import cache
from importlib import import_module, metadata
from importlib.metadata import EntryPoint, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest brings

ROOT = Path(__file__).parents[1]
PACKAGES = ("qlip", "llava", "playground", "scripts")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
EXTRAS = {name: list(map(Requirement, texts)) for name, texts in PROJECT["optional-dependencies"].items()}
NOT_OURS_TO_INSTALL = {"lmms-eval", "vllm"}
"""Libraries that our code works with if they are installed."""
ONLY_SCRIPTS = {"bench", "dev", "docs"}
"""Extras that programs of the checkout need; an installed package does without."""


IMPORT = re.compile(
    r"^\s*(?:import (\w+(?:\.\w+)*(?: as \w+)?(?:, \w+(?:\.\w+)*(?: as \w+)?)*)|from (\w[\w.]*) import\b)", re.MULTILINE
)
"""A statement on a line of its own, at the top or in a function; parsing all files takes seconds."""
distributions = cache(packages_distributions)


def imported(package: str) -> set[str]:
    """Top-level names of other libraries that a package imports, anywhere in its files."""
    found = set()
    for file in (ROOT / package).rglob("*.py"):
        for modules, module in IMPORT.findall(file.read_text(encoding="utf-8")):
            found.update(re.split(r"[. ]", name)[0] for name in (modules or module).split(", "))
    return found - set(sys.stdlib_module_names) - {*PACKAGES, "tests"}


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_imported_is_declared(package: str) -> None:
    allowed = names(CORE)
    for extra, requirements in EXTRAS.items():
        if package == "scripts" or extra not in ONLY_SCRIPTS:
            allowed |= names(requirements)
    for module in imported(package):
        owners = {canonicalize_name(name) for name in distributions().get(module, [module.replace("_", "-")])}
        assert owners & (allowed | NOT_OURS_TO_INSTALL), f"{package} imports {module}, which pyproject lacks"


def test_the_core_needs_no_pandas() -> None:
    assert "pandas" not in names(CORE)


def test_an_extra_asks_for_the_same_version_everywhere() -> None:
    wanted: dict[str, str] = {}
    for requirement in [*CORE, *(item for group in EXTRAS.values() for item in group)]:
        assert wanted.setdefault(requirement.name, str(requirement.specifier)) == str(requirement.specifier)


def test_every_requirement_is_pinned_to_a_version_that_it_allows() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    for requirement in [*CORE, *(item for group in EXTRAS.values() for item in group)]:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("group", sorted(PROJECT["entry-points"]))
def test_every_plugin_that_other_programs_find_here_loads(group: str) -> None:
    for name, value in PROJECT["entry-points"][group].items():
        assert callable(EntryPoint(name, value, group).load())


@pytest.mark.parametrize("name", ["llava", "qlip"])
def test_modules_and_commands_tell_the_version_of_the_package(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    version = metadata.version("llava-qlip")
    assert import_module(name).__version__ == version
    command = next(entry for entry in metadata.entry_points(group="console_scripts", name=name))
    with pytest.raises(SystemExit) as ended:
        command.load()(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{name} {version}\n"
