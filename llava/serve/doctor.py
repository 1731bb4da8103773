"""Report on an installation, for bug reports: `llava doctor`, or `python -m llava.serve.doctor`.

Lists versions, devices, memory and optional packages, and asks the embedded model. It reports no environment variables,
and writes the home folder as "~". A library that cannot be imported becomes a problem in the report.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import metadata, requires
from pathlib import Path
from typing import Any, TypeVar

from llava.command import OneLineParser, exit_on_interrupt, format_error, run_command
from llava.utils import (
    PROJECT,
    check_device,
    default_device,
    demo_model_path,
    demo_picture_path,
    devices,
    installed,
)

OPTIONAL_PACKAGES = ("flash-attn", "open-clip-torch", "timm", "vllm")
"""Packages that are used where they are installed and belong to no extra."""
QUESTION = "What is in the picture?"
PICTURE = "3-large-shapes.png"
SHAPES = frozenset({"a red triangle", "a yellow triangle", "a blue triangle", "a purple ring", "a blue circle"})
"""Objects of that picture, large enough for CLIP's grid and the quadtree alike."""

Result = TypeVar("Result")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code: 0 if all is well, 1 with problems."""
    args = make_parser().parse_args(argv)
    return run_command("llava doctor", lambda: run(args))


def make_parser() -> argparse.ArgumentParser:
    """Builds the parser."""
    parser = OneLineParser(
        prog="llava doctor",
        description="Report versions, devices, memory and optional packages, and ask the embedded model by CLIP's grid "
        "and by quadtree. Exit code 1 if something is missing or broken.",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps: runs the self-test (default: the best there is)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def run(args: argparse.Namespace) -> int:
    """Prints the report; its problems make the exit code 1."""
    with exit_on_interrupt():
        report = build_report(args.device)
    print(json.dumps(report, indent=2) if args.json else format_report(report))
    return 1 if report["problems"] else 0


def build_report(device: str | None = None) -> dict[str, Any]:
    """Collects everything that the command prints, as JSON values.

    Args:
        device: runs the self-test; None is the best there is.
    """
    problems: list[str] = []
    report = {
        "project": describe_project(),
        "system": describe_system(),
        "packages": attempt("packages", lambda: describe_packages(problems), problems),
        "torch": attempt("torch", describe_torch, problems),
        "self_test": None,
    }
    if report["torch"] is not None:
        report["self_test"] = attempt("self-test", lambda: ask_demo(device, problems), problems)
    return {**report, "problems": problems}


def attempt(part: str, work: Callable[[], Result], problems: list[str]) -> Result | None:
    """Runs a part of the report; any error becomes a problem, since a broken library may raise all kinds."""
    try:
        return work()
    except Exception as error:
        problems.append(hide_home(f"{part}: {type(error).__name__}: {format_error(error)}"))
        return None


def hide_home(text: str) -> str:
    """Replaces the home folder in a text by "~"."""
    home = os.path.expanduser("~")
    return text.replace(home, "~") if len(home) > 1 else text


def describe_project() -> dict[str, Any]:
    """Finds the version that is installed, None for a checkout alone, and the folder that the code comes from."""
    return {"name": PROJECT, "version": installed(PROJECT), "folder": hide_home(str(Path(__file__).parents[2]))}


def describe_system() -> dict[str, Any]:
    """Describes Python, the operating system, processors and memory."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cores": usable,
        "memory_gib": memory_gib("SC_PHYS_PAGES"),
        "free_memory_gib": memory_gib("SC_AVPHYS_PAGES"),
    }


def memory_gib(pages: str) -> float | None:
    """Reads an amount of memory in GiB; None where the system does not say (Windows; free memory on a Mac)."""
    if not hasattr(os, "sysconf") or pages not in os.sysconf_names:
        return None
    return gib(os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE"))


def gib(size: int) -> float:
    """Converts bytes to GiB."""
    return round(size / 2**30, 1)


def describe_packages(problems: list[str]) -> dict[str, dict[str, str | None]]:
    """Lists the versions of required and optional packages, None for those that are not installed.

    Args:
        problems: gets those that are missing or of a version that is not allowed. An optional package may be missing.

    Returns:
        "required", then each of the project's extras that adds packages to it, then "beside".
    """
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in (requires(PROJECT) if installed(PROJECT) else None) or ()]
    groups: dict[str, dict[str, str | None]] = {"required": {}}
    if not wanted:  # a checkout that was not installed does not say what it needs
        groups["required"] = {name: installed(name) for name in ("torch", "transformers")}
        return {**groups, "beside": {name: installed(name) for name in OPTIONAL_PACKAGES}}
    for extra in ("", *(name for name in metadata(PROJECT).get_all("Provides-Extra") or () if name != "dev")):
        group = groups.setdefault(extra or "required", {})
        for requirement in wanted:
            listed = requirement.name in groups["required"]
            if listed or (requirement.marker and not requirement.marker.evaluate({"extra": extra})):
                continue
            found = group[requirement.name] = installed(requirement.name)
            needed = f"{requirement.name}{requirement.specifier}"
            if found is None and not extra:
                problems.append(f"packages: {needed} is required and not installed")
            elif found is not None and not requirement.specifier.contains(found, prereleases=True):
                problems.append(f"packages: {requirement.name} is {found}; {needed} is required")
    groups["beside"] = {name: installed(name) for name in OPTIONAL_PACKAGES}
    return {name: group for name, group in groups.items() if group}


def describe_torch() -> dict[str, Any]:
    """Describes PyTorch's build, its threads and the devices that it finds."""
    import torch

    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "threads": torch.get_num_threads(),
        "devices": [describe_device(name) for name in devices()],
    }


def describe_device(name: str) -> dict[str, Any]:
    """Describes a device: its name; of a GPU also model, compute capability and memory."""
    import torch

    if not name.startswith("cuda"):
        return {"name": name}
    free, total = torch.cuda.mem_get_info(name)
    return {
        "name": name,
        "model": torch.cuda.get_device_name(name),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(name))),
        "memory_gib": gib(total),
        "free_memory_gib": gib(free),
    }


def ask_demo(device: str | None, problems: list[str]) -> dict[str, Any]:
    """Asks the embedded model what is in a picture, by CLIP's grid and by quadtree, and checks both answers.

    Args:
        device: runs the model; None is the best there is.
        problems: gets answers that are not what the picture shows.

    Returns:
        The device, the seconds of the libraries' imports and of the model's loading, and by "clip" and "qlip" the
        answer, its visual tokens, its seconds and whether it is right.
    """
    start = time.perf_counter()
    from llava.images import load_image
    from llava.model.builder import load_pretrained_model
    from llava.serve.engine import ChatEngine
    from llava.serve.engine.params import QLIPOptions, Sampling

    imported = time.perf_counter()
    check_device(device or "cpu")
    device = device or default_device()
    engine = ChatEngine(*load_pretrained_model(str(demo_model_path()), device=device, qlip=True))
    result: dict[str, Any] = {
        "device": device,
        "import_seconds": round(imported - start, 2),
        "load_seconds": round(time.perf_counter() - imported, 2),
    }
    picture = load_image(demo_picture_path().with_name(PICTURE))
    sampling = Sampling(temperature=0.0, max_new_tokens=64)
    try:
        for name in ("clip", "qlip"):
            start = time.perf_counter()
            answer = engine.submit(engine.question(QUESTION, 1), [picture], sampling, QLIPOptions(name == "qlip"))
            text = "".join(answer).strip()
            right = set(text.replace(" and ", ", ").split(", ")) == SHAPES
            seconds = round(time.perf_counter() - start, 2)
            result[name] = {"right": right, "tokens": answer.usage.visual_tokens, "seconds": seconds, "answer": text}
            if not right:
                problems.append(f"self-test: {name} answered {text!r}; {PICTURE} shows {', '.join(sorted(SHAPES))}")
    finally:
        engine.close()
    return result


def format_report(report: dict[str, Any]) -> str:
    """Formats a report as text, a line for each part."""
    project, system = report["project"], report["system"]
    lines = [
        f"{project['name']:12} {project['version'] or 'not installed'}, {project['folder']}",
        f"{'python':12} {system['python']}, {system['platform']}",
        f"{'machine':12} {system['machine']}, {system['cores']} cores, {format_memory(system)}",
    ]
    if torch := report["torch"]:
        builds = [f"{name} {torch[name]}" for name in ("cuda", "hip") if torch[name]] or ["built for the CPU"]
        lines.append(f"{'torch':12} {torch['version']}, {', '.join(builds)}, {torch['threads']} threads")
        for found in torch["devices"]:
            about = f", {found['model']} ({found['capability']}), {format_memory(found)}" if "model" in found else ""
            lines.append(f"{'device':12} {found['name']}{about}")
    for group, packages in (report["packages"] or {}).items():
        lines.append(f"{group:12} " + ", ".join(f"{name} {found or '-'}" for name, found in packages.items()))
    if test := report["self_test"]:
        lines.append(f"{'self-test':12} on {test['device']}, loaded in {test['load_seconds']} s")
        for name in ("clip", "qlip"):
            asked = test[name]
            verdict = "right" if asked["right"] else "wrong"
            lines.append(f"{name:12} {verdict}, {asked['tokens']} tokens, {asked['seconds']} s: {asked['answer']}")
    lines += [f"{'problem':12} {problem}" for problem in report["problems"]] or ["no problems found"]
    return "\n".join(lines)


def format_memory(amounts: dict[str, Any]) -> str:
    """Formats memory as "15.6 GiB (9.1 free)"; what is not known is left out."""
    total, free = amounts["memory_gib"], amounts["free_memory_gib"]
    if total is None:
        return "memory not known"
    return f"{total} GiB" + ("" if free is None else f" ({free} free)")


if __name__ == "__main__":
    sys.exit(main())
