"""Imports point one way: from commands to models, from models to the method, and within each package down its layers.

Read from the source by AST, so an import inside a function counts as much as one at the top of a file.
"""

from __future__ import annotations

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import LONGEST

ROOT = Path(__file__).parents[1]
PACKAGES = ("qlip", "llava", "playground", "scripts")
parse = cache(ast.parse)  # each file once

# The layers, lowest first. A module may import modules of lower layers only; in llava, playground and scripts also
# modules of its own layer. "name.*" means every module in a package; a module is in the first layer that matches it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("qlip.kernels.compiling",),
    ("qlip.kernels.resizing", "qlip.kernels.noise", "qlip.kernels.growing", "qlip.kernels.windows"),
    ("qlip.kernels.hats", "qlip.kernels.objects"),
    ("qlip.kernels.loops",),
    (
        "qlip.kernels",
        "qlip.scores.arrays",
        "qlip.command",
        "qlip.config",
        "qlip.files",
        "qlip.images.rgb",
        "qlip.images.limits",
        "qlip.ragged",
        "qlip.backbones.base",
        "qlip.tools.intervals",
        "qlip.tools.plots",
    ),
    (
        "qlip.attention",
        "qlip.scores.edges",
        "qlip.scores.reconstruction",
        "qlip.roots",
        "qlip.scores.noise",
        "qlip.mlp",
        "qlip.splits",
    ),
    ("qlip.scores.structure", "qlip.saved_settings", "qlip.images.resizing"),
    ("qlip.scores.criteria", "qlip.images.arrays", "qlip.images.blocks", "qlip.integrations.subclasses"),
    ("qlip.integrations.continuation", "qlip.integrations.mixins", "qlip.images.pictures", "qlip.prior.config"),
    ("qlip.backbones.transformers", "qlip.backbones.timm", "qlip.backbones.open_clip", "qlip.images.sources"),
    ("qlip.backbones.registry",),
    ("qlip.quadtree", "qlip.tools.bias_config"),
    ("qlip.outputs", "qlip.replicas", "qlip.patches", "qlip.positions", "qlip.tools.draw", "qlip.tools.heat"),
    ("qlip.packing", "qlip.language_positions", "qlip.decoder_masks", "qlip.cutting", "qlip.split_cells"),
    ("qlip.image_processing", "qlip.question", "qlip.tiles", "qlip.untraced"),
    ("qlip.encoder", "qlip.prior.batches", "qlip.tools.show", "qlip.integrations.next_tiles"),
    ("qlip.integrations.attachment",),
    ("qlip.integrations.classes",),
    ("qlip.integrations.llava_trunk", "qlip.integrations.processor", "qlip.integrations.vision"),
    ("qlip.integrations.llava", "qlip.integrations.settings"),
    ("qlip.integrations.question", "qlip.prior.loss", "qlip.pretrained"),
    (
        "qlip.integrations.attach",
        "qlip.integrations.vllm",
        "qlip.integrations.vllm_plugin",
        "qlip.prior.train",
        "qlip.tools.bias",
    ),
    ("qlip.tools.bias_report",),
    ("qlip.backbones", "qlip.images", "qlip.integrations", "qlip.prior", "qlip.scores", "qlip.tools"),
    ("qlip",),
    ("qlip.prior.command",),
    ("qlip.cli",),
    ("qlip.__main__",),
    ("llava.addresses", "llava.tls"),
    ("llava.downloads", "llava.image_sources"),
    ("llava.images",),
    ("llava.constants", "llava.image_geometry", "llava.moderation", "llava.stopping", "llava.text"),
    ("llava.command", "llava.conversation", "llava.mm_utils", "llava.utils"),
    ("llava.model.*",),
    ("llava.serve.engine.*",),
    ("llava.serve.http.*", "llava.serve.loading"),
    ("llava.serve.decoding.*",),
    ("llava.serve.openai.*",),
    ("llava.serve.workers.*",),
    ("llava.serve.web.*",),
    ("llava.eval.score.*",),
    ("llava.eval.run.*",),
    ("llava.eval.review.*", "llava.eval.sweep.*"),
    ("llava.serve.*", "llava.eval.*", "llava.train.*"),
    ("llava", "llava.auto_classes"),
    ("playground.*",),
    ("scripts.*",),
)
SIBLINGS_ALLOWED = ("llava", "playground", "scripts")

# Commands share the runner, images the conversion to RGB; the tower wraps the method, generation shares its positions.
QLIP_USERS = (
    "llava.command",
    "llava.downloads",
    "llava.images",
    "llava.mm_utils",
    "llava.model.llava_arch",
    "llava.model.multimodal_encoder.clip_encoder",
    "llava.model.multimodal_encoder.qlip_encoder",
    "llava.model.packing",
    "llava.model.splice",
    "llava.model.vision",
    "llava.serve",
    "llava.eval",
    "llava.train",
)
SERVING = ("gradio", "fastapi", "uvicorn", "httpx", "ray")


def covers(pattern: str, module: str) -> bool:
    name = pattern.removesuffix(".*")
    return module == name or (pattern.endswith(".*") and module.startswith(name + "."))


def layer(module: str) -> int | None:
    """Finds the number of a module's layer; None if LAYERS lacks it."""
    return next((i for i, names in enumerate(LAYERS) if any(covers(name, module) for name in names)), None)


def modules() -> dict[str, Path]:
    """Maps every module's dotted name to its file; a package's name to its __init__.py."""
    files = (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def statements(node: ast.AST) -> list[ast.AST]:
    """Lists all statements in a tree; `ast.walk` goes through ten times as many expressions besides."""
    nested = ("body", "orelse", "finalbody", "handlers", "cases")
    children = [child for field in nested for child in getattr(node, field, ())]
    return children + [deeper for child in children for deeper in statements(child)]


def imports(module: str, source: str, known: set[str], is_package: bool = False) -> set[str]:
    """Lists the dotted names that `source` imports; `from package import module` counts as the module if it is one."""
    found = set()
    for node in statements(parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                above = here[: len(here) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            names = {f"{base}.{alias.name}" for alias in node.names}
            found.update(name if name in known else base for name in names)
    return found


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def complaint(module: str, target: str) -> str | None:
    """Says why `module` must not import `target`; None if it may."""
    package, target_package = module.split(".")[0], target.split(".")[0]
    if package == "qlip" and target_package in SERVING:
        return f"{module} imports {target}: the method must not depend on servers"
    if target_package not in PACKAGES:
        return None
    if target_package == "qlip" and package == "llava" != module and not any(is_in(module, own) for own in QLIP_USERS):
        return f"{module} imports {target}: in llava only {', '.join(QLIP_USERS)} know qlip"
    height, target_height = layer(module), layer(target)
    if height is None or target_height is None:
        return f"{module if height is None else target} has no layer; give it one in LAYERS"
    siblings = height == target_height and package == target_package and package in SIBLINGS_ALLOWED
    if target_height > height or (target_height == height and not siblings):
        return f"{module} imports {target}: which is not in a lower layer"
    return None


def complaints(module: str, source: str, known: set[str], is_package: bool = False) -> list[str]:
    targets = sorted(imports(module, source, known, is_package))
    return [text for target in targets if (text := complaint(module, target)) is not None]


def test_every_import_points_down():
    files = modules()
    assert files
    found = []
    for module, file in files.items():
        found += complaints(module, file.read_text(encoding="utf-8"), set(files), file.name == "__init__.py")
    assert found == []


def test_every_module_has_its_layer():
    assert [module for module in modules() if layer(module) is None] == []


def test_no_modules_import_each_other():
    """All imports count: those for type checkers and those inside functions, too."""
    files = modules()
    graph = {
        module: imports(module, file.read_text(encoding="utf-8"), set(files), file.name == "__init__.py")
        & set(files) - {module}
        for module, file in files.items()
    }
    list(TopologicalSorter(graph).static_order())  # CycleError names the modules


def long_functions(tree: ast.Module, most: int = 60) -> list[str]:
    """Lists the functions that have over `most` lines without their docstrings."""
    found = []
    for node in statements(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            described = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            if node.end_lineno - node.lineno + 1 - described > most:
                found.append(node.name)
    return found


def test_files_and_functions_are_short_and_files_say_what_they_hold():
    texts = {module: file.read_text(encoding="utf-8") for module, file in modules().items()}
    trees = {module: parse(text) for module, text in texts.items()}
    assert [module for module, text in texts.items() if len(text.splitlines()) > 300] == []
    assert [module for module, tree in trees.items() if not ast.get_docstring(tree)] == []
    assert [f"{module}.{name}" for module, tree in trees.items() for name in long_functions(tree)] == []


def test_a_long_function_is_caught_and_a_long_docstring_is_not():
    described = 'def described():\n    """Counts.' + "\n" * 90 + '    """\n    return 1\n'
    long = "def long():\n" + "    pass\n" * 60
    assert long_functions(ast.parse(described + long)) == ["long"]


def test_test_files_are_short():
    files = (ROOT / "tests").rglob("*.py")
    assert [str(file.relative_to(ROOT)) for file in files if len(file.read_text().splitlines()) > 300] == []


def test_the_longest_test_files_are_there():
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []


KNOWN = {"qlip", "qlip.config", "qlip.quadtree", "qlip.encoder", "llava.model.builder", "llava.constants"}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("qlip.quadtree", "from qlip.encoder import QLIPVisionModel"),
        ("qlip.quadtree", "import qlip.positions"),
        ("qlip.quadtree", "import qlip"),
        ("qlip.quadtree", "from . import encoder"),
        ("qlip.quadtree", "from .encoder import QLIPVisionModel"),
        ("qlip.quadtree", "def late():\n    from qlip import encoder"),
        ("qlip.patches", "from qlip.positions import raster_positions"),
        ("qlip.config", "from qlip.scores.criteria import score_pyramid"),
        ("qlip.encoder", "from llava.constants import IGNORE_INDEX"),
        ("qlip.cli", "import gradio as gr"),
        ("qlip.novelty", "import qlip.config"),
        ("llava.model.builder", "from llava.serve.engine.chat_engine import Engine"),
        ("llava.serve.engine.vision", "from llava.serve.http import server"),
        ("llava.serve.http.server", "from llava.serve.openai import app"),
        ("llava.serve.workers.registry", "from llava.serve import controller"),
        ("llava.eval.run.runner", "from llava.eval import model_vqa_loader"),
        ("llava.model.builder", "from ..serve import engine"),
        ("llava.model.builder", "from qlip import QLIPConfig"),
        ("llava.mm_utils", "from llava.model import builder"),
        ("llava.images", "from llava.serve.engine.chat_engine import Engine"),
        ("llava.utils", "import qlip"),
        ("llava.serve.engine.chat_engine", "from playground.scenes import draw"),
        ("llava.train.train", "import scripts.bench.quadtree"),
        ("playground.train", "from scripts import bench"),
    ],
)
def test_an_import_that_points_up_is_caught(module, source):
    assert len(complaints(module, source, KNOWN)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("qlip.encoder", "import torch\nfrom qlip.config import QLIPConfig\nfrom .patches import extract_patches"),
        ("llava.model.multimodal_encoder.qlip_encoder", "from qlip import QLIPVisionModel\nfrom .base import Tower"),
        ("llava.model.builder", "from llava.constants import IGNORE_INDEX\nfrom . import llava_arch"),
        ("llava.serve.cli", "import qlip\nfrom llava.serve.engine.chat_engine import Engine\nimport gradio"),
        ("llava.eval.run_llava", "from llava.serve import engine\nfrom llava.model.builder import load"),
        ("playground.train", "from llava.train import train\nimport qlip"),
        ("scripts.bench.quadtree", "import qlip\nfrom llava.model import builder\nfrom scripts.bench import naive"),
    ],
)
def test_an_import_that_points_down_passes(module, source):
    assert complaints(module, source, KNOWN) == []


def test_a_relative_import_in_a_package_file_starts_from_the_package():
    found = imports("qlip", "from . import encoder\nfrom .config import QLIPConfig", KNOWN, is_package=True)
    assert found == {"qlip.encoder", "qlip.config"}
