"""Imports between the evidence's folders point one way: from the commands down to what they share."""

from __future__ import annotations

from tests.test_architecture import imports, modules

PACKAGE = "scripts.bench.evidence"
LAYERS = (
    ("rivals",),
    ("answering",),
    ("pages",),
    ("claims", "deletion", "gallery", "loss_causes", "photographs", "question", "reading"),
)
"""Folders, lowest first. A module imports from lower folders and from its own; commands beside them from all."""


def folder(module: str) -> str | None:
    """Finds the folder of a module; None for a command, and for what is not the evidence's."""
    parts = module.removeprefix(f"{PACKAGE}.").split(".")
    return parts[0] if module.startswith(f"{PACKAGE}.") and parts[0] in sum(LAYERS, ()) else None


def height(name: str | None) -> int:
    return next((number for number, names in enumerate(LAYERS) if name in names), len(LAYERS))


def test_folders_import_from_lower_ones_alone() -> None:
    files = modules()
    own = {module: file for module, file in files.items() if module.startswith(f"{PACKAGE}.")}
    assert {folder(module) for module in own} == {None, *sum(LAYERS, ())}
    found = []
    for module, file in own.items():
        targets = imports(module, file.read_text(encoding="utf-8"), set(files)) & own.keys()
        here = folder(module)
        found += [(module, name) for name in targets if folder(name) != here and height(folder(name)) >= height(here)]
    assert found == []
