"""What the page draws: the three views, and the chart of accuracy by tokens."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from llava.serve.engine import ChatEngine
from llava.serve.engine.params import QLIPOptions
from llava.serve.web.backend import EngineBackend
from llava.serve.web.chart import Curve, accuracy_chart, embedded_curve
from llava.serve.web.controls import CLIP, QLIP, QUESTION
from llava.serve.web.handlers import Demo
from llava.serve.web.session import Session
from llava.serve.web.views import ALTS, LINES, PICTURE, TOWER, draw
from qlip import QLIPConfig
from tests.llava.serve.openai.serving import picture
from tests.llava.serve.web.clients import controls, request

DOCS = Path(__file__).parents[4] / "docs"


@pytest.fixture(scope="module")
def backend(engine: ChatEngine) -> EngineBackend:
    return EngineBackend(engine)


def test_the_picture_is_drawn_as_it_is_and_lines_only_where_it_is_split(backend: EngineBackend) -> None:
    shown = picture()
    prepared = backend.prepare(shown, QLIPOptions(max_tokens=128))
    plain, lines = (np.asarray(draw(prepared, backend.pixels, 320, shown, view)) for view in (PICTURE, LINES))
    assert plain.shape[:2] == (320, 320)
    background = shown.getpixel((0, 0))
    assert (lines[5:100, 5:100] == background).all(), "flat ground stays clean"
    height = min(len(plain), len(lines))
    assert (np.abs(plain[:height, :height].astype(int) - lines[:height, :height]) > 60).any(-1).sum() > 200


def test_the_tower_s_view_is_made_of_its_patches(backend: EngineBackend) -> None:
    """A leaf of k cells is enlarged k times: its pixels come in squares, as in a picture that was made smaller."""
    prepared = backend.prepare(picture(), QLIPOptions(max_tokens=128))
    side = backend.pixels.patch_size
    drawn = np.asarray(draw(prepared, backend.pixels, side * max(prepared.leaves.grid), view=TOWER))
    for row, col, size in prepared.leaves.boxes.tolist():
        block = drawn[row * side : (row + size) * side, col * side : (col + size) * side]
        assert (block == np.repeat(np.repeat(block[::size, ::size], size, 0), size, 1)).all()


def test_a_view_is_chosen_and_an_unknown_one_refused(demo: Demo) -> None:
    session = Session(picture())
    for view in (PICTURE, LINES, TOWER):
        chosen, drawing, about = demo.set_view(request("a"), session, view, *controls())
        assert chosen == view and drawing is not None and Image.open(drawing).format == "PNG"
        assert f'data-alt="{ALTS[view]}"' in about
    with pytest.raises(gr.Error, match="The view is &#x27;x&#x27;|The view is 'x'"):
        demo.set_view(request("a"), session, "x", *controls())


def test_the_chart_s_numbers_are_those_of_the_claims_in_the_settings_of_today() -> None:
    """Measured again when a default changes: `source` is the command."""
    record = json.loads(files("llava.serve.web").joinpath("accuracy.json").read_text())
    assert record["settings"] == {name: getattr(QLIPConfig(), name) for name in record["settings"]}
    assert "split_order" in record["settings"] and "--experiments page " in record["source"]
    results = (DOCS / "RESULTS.md").read_text()
    shipped = {
        way: float(value)
        for way, value in re.findall(r"^\| objects 12-24 px, (\w+): V\* \| [^|]* \| ([\d.]+) ", results, re.MULTILINE)
    }
    curve = embedded_curve()
    assert (curve.clip[1], curve.qlip[-1][1]) == (shipped["CLIP"], shipped["QLIP"])


def test_the_chart_marks_the_tokens_of_the_picture() -> None:
    def mark(tokens: int) -> float:
        return float(re.search(r'<line class="now" x1="([\d.]+)"', accuracy_chart(embedded_curve(), tokens))[1])

    marks = [mark(tokens) for tokens in (16, 64, 91)]
    assert marks == sorted(marks) and marks[0] < marks[1] and marks[-1] < 340
    assert "this picture has 91" in accuracy_chart(embedded_curve(), 91)
    assert ">91 tokens for this answer<" in accuracy_chart(embedded_curve(), 91, "for this answer")
    assert ">1 token now<" in accuracy_chart(embedded_curve(), 1)


@pytest.mark.parametrize(
    ("chosen", "marked"),
    [
        (controls(), True),
        (controls(budget=1), False),
        (controls(alpha=0, budget=300), False),
        (controls(alpha=0.3), False),
        (controls(QUESTION), False),
        (controls(CLIP, alpha=0.3), True),
    ],
    ids=["measured", "fewer tokens", "more tokens", "another threshold", "by question", "CLIP"],
)
def test_the_chart_marks_only_what_was_measured(engine: ChatEngine, chosen: tuple[Any, ...], marked: bool) -> None:
    demo = Demo(EngineBackend(engine), curve=embedded_curve())
    drawn = demo.draw(Session(picture()), *chosen)[1]
    assert '<figure class="curve">' in drawn
    assert ('class="now"' in drawn) == marked and ("this picture has" in drawn) == marked


def test_the_chart_does_not_join_qlips_points_through_clips() -> None:
    """A budget of CLIP's own number leaves its view as it is: lower than both neighbours."""
    curve = Curve("", "", (64, 26.0), ((16, 1.0), (44, 87.0), (64, 26.0), (78, 88.0), (93, 90.0)))
    lines = re.findall(r'<polyline points="([^"]*)"', accuracy_chart(curve, 91))
    assert [len(line.split()) for line in lines] == [2, 2]
    assert accuracy_chart(curve, 91).count("<circle") == 4


def test_without_a_curve_there_is_no_chart(demo: Demo) -> None:
    assert accuracy_chart(None, 64) == ""
    assert "<svg" not in demo.draw(Session(picture()), *controls())[1]


def test_the_meter_says_what_is_not_split_and_what_is_almost_nothing_of_the_grid(demo: Demo) -> None:
    flat = Image.new("RGB", (448, 448), "gray")
    assert "; nothing is split" in demo.draw(Session(flat), *controls())[1]
    assert "nothing is split" not in demo.draw(Session(picture()), *controls())[1]
    huge = Image.effect_noise((1792, 1792), 90).convert("RGB")
    meter = demo.draw(Session(huge), *controls(QLIP, 3.0, 20))[1]
    assert "&lt;1% of the uniform grid" in meter and ">0%" not in meter


def test_the_meter_of_clip_names_both_sizes_of_a_picture_that_is_padded(demo: Demo) -> None:
    meter = demo.draw(Session(Image.new("RGB", (400, 200), "gray")), *controls(CLIP))[1]
    assert "uniform grid of 112&times;112 pixels, from a picture of 400&times;200" in meter


def test_the_meter_says_what_one_token_is(demo: Demo) -> None:
    meter = demo.draw(Session(picture()), *controls(budget=1))[1]
    assert "<strong>1</strong> visual token<" in meter
    assert ">The whole picture in one piece (CLIP takes 64)<" in meter and "100%" not in meter
