"""The deletion test of attributions: which answers change without the leaves that count most, or without random ones.

A leaf that is left out has no token: the other tokens keep their positions, and text comes where it came before.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava.eval.run.answerer import Answerer, same_answer
from llava.eval.run.answers.jsonl import append_row, read_rows, replace
from llava.model.attribution import METHODS, attribute_answer
from llava.model.builder import load_pretrained_model
from llava.model.vision.encoding import encode_prepared
from llava.model.vision.image_tokens import ImageTokens
from llava.serve.engine import ChatEngine
from llava.serve.engine.explain import tokenize_answer
from qlip.tools.intervals import mean_interval
from scripts.bench.evidence.answering.scene_sets import series_of
from scripts.bench.evidence.answering.sets import draw_set
from scripts.bench.evidence.answering.trees import STRUCTURE_BY_SCORE
from scripts.markdown_table import table_head, table_row

RANDOM = ("random", "random again")
"""Draws of leaves at random, averaged in the table."""
COLUMNS = ("random", *METHODS)
KEY = ("model", "split", "set", "scene", "share")
"""The fields that identify a line of the log."""

Row = Mapping[str, Any]


def measure(options: argparse.Namespace) -> list[Row]:
    """Measures the scenes that the log lacks; returns the lines of all that were asked for."""
    done = _read_log(options.log)
    rows: list[Row] = []
    for name in options.sets:
        if options.report_only:
            wanted = {model for model, _ in options.model}
            rows += [row for key, row in done.items() if key[0] in wanted and key[1:3] == (options.split, name)]
            continue
        drawn = draw_set(name, options.split, options.scenes)
        for model, path in options.model:
            keys = [(model, options.split, name, scene, options.share) for scene in range(options.scenes)]
            if any(key not in done for key in keys):
                engine = ChatEngine(*load_pretrained_model(path, device="cpu", qlip=STRUCTURE_BY_SCORE))
                for key, picture, questions in zip(keys, drawn.pictures, drawn.questions, strict=True):
                    if key not in done:
                        rng = np.random.default_rng((series_of(options.split), key[3], 4))
                        row = dict(zip(KEY, key, strict=True))
                        row |= examine(engine, picture, questions, options.share, rng)
                        append_row(options.log, row)
                        done[key] = row
                engine.close()
            rows += [done[key] for key in keys]
    return rows


def _read_log(path: Path) -> dict[tuple[Any, ...], Row]:
    """Reads the lines of a log by their `KEY`; cuts off one that was not finished."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opening = b'{"model": '
    read = read_rows(
        path,
        "a scene of the deletion test",
        lambda row: {*KEY, "changed"} <= set(row),
        lambda line: line.startswith(opening) or opening.startswith(line),
    )
    if not read.whole:
        replace(path, read.content)
    return {tuple(row[name] for name in KEY): row for _, row in read.numbered}


def examine(
    engine: ChatEngine, picture: Any, questions: Sequence[Any], share: float, rng: np.random.Generator
) -> dict[str, Any]:
    """Asks every question about a picture with all leaves, then without some.

    Args:
        engine: has a quadtree tower.
        picture: the image.
        questions: have `text`, `answer` and `category`.
        share: of the leaves that are left out, at least one.
        rng: chooses those at random.

    Returns:
        `kinds` and `right` by question, and `changed`: by method whether each answer changed.
    """
    answerer = Answerer(engine, max_new_tokens=40)
    with torch.inference_mode():
        (tokens,) = encode_prepared(engine.model, [engine.vision.prepare(picture, engine.vision.settings())])
    said = answerer.answer([tokens], [(0, question.text) for question in questions])
    views: list[ImageTokens] = []
    for question, answer in zip(questions, said, strict=True):
        asked = engine.question(question.text, 1)
        for name in (*METHODS, *RANDOM):
            if name in RANDOM or not answer:
                weights = torch.from_numpy(rng.random(len(tokens.features)))
            else:
                (weights,) = attribute_answer(engine.model, *tokenize_answer(engine, asked, answer), [tokens], name)
            views.append(leave_out(tokens, weights, share))
    each = len(METHODS) + len(RANDOM)
    texts = [questions[i // each].text for i in range(len(views))]
    again = answerer.answer(views, list(enumerate(texts)))
    changed = {
        name: [text != before for text, before in zip(again[i::each], said, strict=True)]
        for i, name in enumerate((*METHODS, *RANDOM))
    }
    right = [same_answer(text, question.answer) for text, question in zip(said, questions, strict=True)]
    return {"kinds": [q.category for q in questions], "right": right, "changed": changed, "tokens": tokens.span.count}


def leave_out(tokens: ImageTokens, weights: torch.Tensor, share: float) -> ImageTokens:
    """Leaves out the share of an image's tokens, at least one, that weighs most."""
    keep = torch.ones(len(weights), dtype=torch.bool)
    keep[weights.argsort(descending=True)[: max(1, round(share * len(weights)))]] = False
    return tokens.select(keep)


def table(rows: Iterable[Row]) -> str:
    """Formats, by model and set, the share of answers in % that changed, with intervals over scenes."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["set"]), []).append(row)
        groups.setdefault((row["model"], "all"), []).append(row)
    lines = [table_head(["model", "set", "scenes", "leaves", *COLUMNS])]
    for (model, name), own in sorted(groups.items(), key=lambda group: (group[0][0], group[0][1] == "all")):
        cells = [_cell(own, RANDOM), *(_cell(own, (method,)) for method in METHODS)]
        leaves = sum(row["tokens"] for row in own) / len(own)
        lines.append(table_row([model, name.removeprefix("mixed/"), str(len(own)), f"{leaves:.0f}", *cells]))
    return "\n".join(lines)


def _cell(rows: Sequence[Row], names: Sequence[str]) -> str:
    marks = [
        (100.0 * changed, (row["set"], row["scene"]))
        for row in rows
        for name in names
        for changed in row["changed"][name]
    ]
    found = mean_interval([mark for mark, _ in marks], [scene for _, scene in marks])
    return f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})"
