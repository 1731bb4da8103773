"""The measurement of the question-aware budget: its scenes, its ways, its tables."""

from __future__ import annotations

import numpy as np
import pytest

from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine
from llava.utils import demo_model_path
from playground.questions import KINDS, V_STAR
from qlip import QLIPConfig
from scripts.bench.evidence.question.cost import prefill_flops
from scripts.bench.evidence.question.measure import Tally, choose_ways, draw_scenes, make_ways, measure, table


def test_every_way_answers_the_same_questions_and_only_a_question_takes_two_passes():
    engine = ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu", qlip=True))
    ways = make_ways(engine.vision.tower.settings, 64, [0])
    ways = [ways[0], ways[1], ways[-2], ways[-1]]
    tallies = measure(engine, ways, draw_scenes((16, 28), 3, 2))
    assert [sorted(tally.right) for tally in tallies.values()] == [sorted(KINDS)] * 4
    assert [len(tally.second) for tally in tallies.values()] == [2 * len(KINDS)] * 4
    assert [set(tally.first) for tally in tallies.values()] == [{0}, {0}, {64}, {64}]
    assert set(tallies[ways[0].name].second) == {64} and max(tallies[ways[1].name].second) <= 76
    assert min(tallies[ways[2].name].second) > 64
    assert len(table([tallies], 64).splitlines()) == 6
    engine.close()


def tally(right: list[bool], tokens: int) -> Tally:
    made = Tally()
    made.right = {kind: right if kind in V_STAR else [True, True] for kind in KINDS}
    made.first, made.second = [64] * 2 * len(KINDS), [tokens] * 2 * len(KINDS)
    return made


def test_checkpoints_are_reported_together_and_the_answers_about_a_scene_are_one_group():
    lines = table([{"way": tally([True, False], 64)}, {"way": tally([False, False], 128)}], 64).splitlines()
    cost = prefill_flops(1.5, 1.0) / prefill_flops(1.0)
    # V*: half of the answers about one scene are right and none about the other, so its interval is 0 to 50.
    row = f"| way | 96.0 | 1.50 | {cost:.2f} | **25.0** [0.0, 50.0] | 50.0 / 0.0 |" + 3 * " **100.0** [100.0, 100.0] |"
    assert lines[0].startswith("| way | tokens | x CLIP's | 7B prefill, x CLIP's | V* | V* by checkpoint | existence |")
    assert lines[2:] == [row]


def test_scenes_lie_over_photographs_and_are_the_same_every_time():
    ((one, asked),), ((again, _),) = (list(draw_scenes((16, 28), 3, 1)) for _ in range(2))
    assert np.array_equal(one.image, again.image) and one.image.shape == (448, 448, 3)
    assert [question.kind for question in asked] == list(KINDS)
    assert len(np.unique(one.image.reshape(-1, 3), axis=0)) > 100


def test_rows_are_chosen_by_name_and_an_unknown_one_is_named() -> None:
    ways = make_ways(QLIPConfig(), 64, [])
    assert choose_ways(ways, None) == ways
    chosen = choose_ways(ways, ["question 0.15, scores 0.15", "unsplit, CLIP's view"])
    assert [way.name for way in chosen] == ["unsplit, CLIP's view", "question 0.15, scores 0.15"]
    with pytest.raises(ValueError, match="there is no way 'CLIP'; allowed are unsplit, CLIP's view, score, 1.2 x"):
        choose_ways(ways, ["CLIP"])
