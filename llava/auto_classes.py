"""Registers LLaVA's model types with transformers' auto classes on `import llava`, without importing anything heavy.

transformers finds the class of a model type in a table of names, and imports the module `transformers.models.TYPE` for
it. LLaVA's types are added to that table as soon as it exists, and those modules are provided here, so that
`llava.model`, and with it torch, is not imported before such a checkpoint is loaded.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

TABLE = "transformers.models.auto.configuration_auto"
CONFIGS = {
    "llava_llama": "LlavaConfig",
    "llava_mistral": "LlavaMistralConfig",
    "llava_mpt": "LlavaMptConfig",
    "llava_qwen": "LlavaQwenConfig",
}
"""Model type -> class of `llava.model`."""

MODULES = {f"transformers.models.{model_type}": model_type for model_type in CONFIGS}


def register_lazily() -> None:
    """Registers LLaVA's model types with transformers, at once or when it is imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    if (table := sys.modules.get(TABLE)) is not None and hasattr(table, "CONFIG_MAPPING_NAMES"):
        add_types(table)


def add_types(table: ModuleType) -> None:
    """Adds the types to transformers' table under unique names: it has its own LlavaConfig."""
    for model_type in CONFIGS:
        table.CONFIG_MAPPING_NAMES.setdefault(model_type, unique_name(model_type))


def unique_name(model_type: str) -> str:
    """Builds the configuration's name in transformers' table: "LlavaLlamaConfig" of "llava_llama"."""
    return "".join(part.capitalize() for part in model_type.split("_")) + "Config"


class _Finder(importlib.abc.MetaPathFinder):
    """Finds transformers' table, to add to it when it is loaded, and the modules of the added types."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in MODULES:
            return importlib.util.spec_from_loader(fullname, _TypeLoader())
        if fullname != TABLE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _TableLoader(spec.loader)
        return spec


class _TableLoader(importlib.abc.Loader):
    """Loads transformers' table by its own loader, then adds LLaVA's types."""

    def __init__(self, own: importlib.abc.Loader) -> None:
        self.own = own

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.own.exec_module(module)
        add_types(module)

    def __getattr__(self, name: str) -> Any:
        """Delegates the rest of a loader's interface, such as the source."""
        return getattr(self.own, name)


class _TypeLoader(importlib.abc.Loader):
    """Loads `transformers.models.llava_llama` and the like: a module that holds the configuration's class only."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        from llava import model  # here: it imports torch

        model_type = MODULES[module.__name__]
        setattr(module, unique_name(model_type), getattr(model, CONFIGS[model_type]))
