"""The report of the GPU check, docs/results/gpu.json, and its page, docs/results/gpu.md. Imports nothing heavy."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qlip.files import replacing
from scripts.bench.gpu.parts import PARTS, Part, Row
from scripts.markdown_table import table_head, table_row

FILE, PAGE = "gpu.json", "gpu.md"

Report = dict[str, Any]
"""Name of a part -> its date, model, machine, status and rows."""

STAGES = ("prepare", "partition", "extraction", "tower", "projector", "prefill", "decode", "total")
"""The stages of `scripts.bench.cost_stages`, which is heavy to import."""
NOT_MEASURED = "not measured"
INTRODUCTION = f"""\
# On a GPU

`make gpu-check` writes this page, from `{FILE}` beside it. Models have random weights of LLaVA-1.5-7B's shape
(Vicuna-7B, CLIP ViT-L/14-336) in float16, so nothing here is about answers. Times are wall times, with the device
synchronised, after a warm-up. Ways that are compared take turns in one process; a ratio is the median of the turns'
ratios. An operation on the CPU takes one thread, since pictures are prepared in several threads at once."""
NOTES = {
    "tests": "Of `tests/gpu`, on small models.",
    "quadtree": """\
Partition and patches of a photograph that is on the device already. *share*: of the layers of ViT-L/14-336 in float16
over as many tokens and [CLS]; every image takes the default budget of 1152 (alpha 0). *recursive / ours*: the recursive
reference with the same leaves (gradient, alpha 0.1, no budget), with its tensors on the GPU and on the CPU. *launches*:
kernels and copies that an image takes; *waits*: how often the CPU waits for them.""",
    "first-token": """\
Square photographs of 896 px. prepare: picture to tensor on the CPU. prefill: encoded image and prompt to the first
token. decode: each further token. total: tensor on the CPU to the first token, timed by itself. QLIP: the default
settings with alpha 0, so that it takes its whole budget. LLaVA-1.6's tiles: base and four tiles, without newlines.""",
    "engine": """\
Clients send the next request as soon as the last one is answered: another picture of 672 px each, 576 visual tokens,
answers of at most 24, 48 or 72 tokens. The engine answers up to 32 together. `generate`: transformers', one request at
a time, greedy, with the same preparation. Text begins: from sending a request to the first piece of text. Same answers:
a batch rounds otherwise in float16, and random weights make near ties.""",
    "runner": """\
Questions about pictures of 672 px, 576 visual tokens, answers of 16 tokens; up to four processes prepare pictures;
the time includes their start. One at a time: open, prepare, `generate`, next.""",
}


def load_report(folder: Path) -> Report:
    """Reads the report in a folder; empty where there is none."""
    file = folder / FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write_report(folder: Path, report: Report) -> None:
    """Writes the report and its page."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ((FILE, json.dumps(report, indent=1) + "\n"), (PAGE, render(report))):
        with replacing(folder / name) as new:
            new.write_text(text, encoding="utf-8")


def render(report: Report) -> str:
    """Formats the page; what the report lacks is "not measured"."""
    return "\n\n".join([INTRODUCTION, *(section(part, report.get(part.name)) for part in PARTS)]) + "\n"


def section(part: Part, found: Report | None) -> str:
    """Formats a part's section."""
    head = f"## {part.title}\n\n{NOTES[part.name]}"
    if found is None or not found["rows"]:
        reason = "" if found is None else f" ({found['status']}, {found['date']})"
        return f"{head}\n\n{NOT_MEASURED.capitalize()}{reason}."
    rows = [row for row in found["rows"] if "error" not in row]
    errors = [f"{row['key']}: {NOT_MEASURED} ({row['error']})." for row in found["rows"] if "error" in row]
    machine = ", ".join(f"{name} {value}" for name, value in found["machine"].items())
    said = [f"{machine}; {found['model']}; {found['date']}."]
    if found["status"] != "done":
        said.append(f"The run is not complete: {found['status']}.")
    return "\n\n".join([head, " ".join(said), *TABLES[part.name](rows), *errors])


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Formats a table, in a list; an empty list without rows."""
    return ["\n".join([table_head(heads), *map(table_row, rows)])] if rows else []


def figure(value: float | None) -> str:
    """Formats a number with three digits; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def tests_tables(rows: Sequence[Row]) -> list[str]:
    """Says how many tests passed, and names those that failed or were skipped."""
    texts = []
    for row in rows:
        lines = [f"{row['passed']} passed, {len(row['failed'])} failed, {len(row['skipped'])} skipped."]
        lines += [f"- failed: `{name}`" for name in row["failed"]]
        lines += [f"- skipped: `{name}`: {reason}" for name, reason in row["skipped"].items()]
        texts.append("\n".join([lines[0], "", *lines[1:]]).strip())
    return texts


def quadtree_tables(rows: Sequence[Row]) -> list[str]:
    """Formats the share of the tower, the ratio to the recursive reference, and the launches."""
    shares = [
        [f"{row['size']} px", row["criterion"], str(row["leaves"]), figure(row["ms"]["ours"])]
        + [figure(row["ms"]["tower"]), f"{row['share']:.1%}", str(row["turns"])]
        for row in rows
        if "share" in row
    ]
    ratios = [
        [f"{row['size']} px", str(row["leaves"]), *(figure(value) for value in row["ms"].values())]
        + [figure(row["ratio"]), figure(row["ratio_cpu"]), str(row["turns"])]
        for row in rows
        if "ratio" in row
    ]
    counts = [
        [f"{row['size']} px", row["criterion"], str(row["launches"]), str(row["waits"])]
        for row in rows
        if "launches" in row
    ]
    times = ["ours ms", "recursive ms", "recursive on the CPU ms"]
    return [
        *table(["picture", "criterion", "leaves", "ours ms", "ViT-L ms", "share", "turns"], shares),
        *table(["picture", "leaves", *times, "recursive / ours", "on the CPU / ours", "turns"], ratios),
        *table(["picture", "criterion", "launches", "waits"], counts),
    ]


def first_token_tables(rows: Sequence[Row]) -> list[str]:
    """Formats the stages of each way and its total against CLIP's."""
    stages = [stage for stage in STAGES if any(stage in row["ms"] for row in rows)]
    cells = [
        [row["key"], f"{row['tokens']:g}", *(figure(row["ms"].get(stage)) for stage in stages)]
        + [figure(row["ratio"]), str(row["turns"])]
        for row in rows
    ]
    return table(["seen by", "tokens", *(f"{stage} ms" for stage in stages), "total / CLIP", "turns"], cells)


def engine_tables(rows: Sequence[Row]) -> list[str]:
    """Formats tokens per second and the time to the first text by number of clients."""
    cells = [
        [str(row["clients"]), str(row["requests"]), figure(row["tokens_per_second"])]
        + [figure(row["plain_tokens_per_second"]), figure(row["ratio"]), figure(row["first_text_p50_s"])]
        + [figure(row["first_text_p95_s"]), f"{row['same_answers']:.0%}", str(row["turns"])]
        for row in rows
    ]
    heads = ["clients", "requests", "engine tokens/s", "`generate` tokens/s", "ratio", "text begins p50 s", "p95 s"]
    return table([*heads, "same answers", "turns"], cells)


def runner_tables(rows: Sequence[Row]) -> list[str]:
    """Formats questions per second of both ways."""
    cells = [
        [row["key"], str(row["questions"]), figure(row["alone_per_second"]), figure(row["runner_per_second"])]
        + [figure(row["ratio"]), f"{row['same_answers']:.0%}", str(row["turns"])]
        for row in rows
    ]
    return table(["questions", "of a run", "one at a time /s", "runner /s", "ratio", "same answers", "turns"], cells)


TABLES: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "tests": tests_tables,
    "quadtree": quadtree_tables,
    "first-token": first_token_tables,
    "engine": engine_tables,
    "runner": runner_tables,
}
