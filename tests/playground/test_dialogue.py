"""Questions about any scene: answers by a reading of the text that shares no code with the asking."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from playground.dialogue import DIALOGUE_KINDS, SIGN_WORDINGS, ask, choose_kinds, full_listing, read_sign
from playground.objects import COLOURS, SHAPES, SceneObject, Sign
from playground.questions import WORDINGS

NAMES = st.lists(st.tuples(st.sampled_from(list(COLOURS)), st.sampled_from(SHAPES)), max_size=5, unique=True)
SIGNS = st.one_of(
    st.none(),
    st.builds(
        Sign, st.sampled_from(["7", "42", "stop"]), st.just((50.0, 63.0)), st.just((10, 20)), st.just(8), st.booleans()
    ),
)


def make(names: list[tuple[str, str]]) -> list[SceneObject]:
    """Objects from left to right, 20 pixels apart."""
    return [SceneObject(colour, shape, (50.0, 10.0 + 20 * at), 9) for at, (colour, shape) in enumerate(names)]


def read(text: str, objects: list[SceneObject], sign: Sign | None) -> str:
    """Answers a question from its text alone; objects are given from left to right."""
    present = [(item.colour, item.shape) for item in objects]
    words = re.findall(r"\w+", text)
    if "sign" in words:
        return "none" if sign is None else sign.text if sign.readable else "I can't tell"
    if "many" in words or "number" in words:
        return str(len(present)) if present else "none"
    named = re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", text)
    if len(named) == 2:
        if "On" in words:
            named.reverse()
        if not set(named) <= set(present):
            return "I can't tell"
        return "left" if present.index(named[0]) < present.index(named[1]) else "right"
    if len(named) == 1:
        return "yes" if named[0] in present else "no"
    for known, wanted, values in ((1, 0, SHAPES), (0, 1, COLOURS)):
        if asked := [word for word in words if word in values]:
            answers = [pair[wanted] for pair in present if pair[known] == asked[0]]
            return answers[0] if len(answers) == 1 else "I can't tell" if answers else "none"
    raise AssertionError(text)


@settings(max_examples=150)
@given(
    names=NAMES,
    sign=SIGNS,
    kind=st.sampled_from([k for k in DIALOGUE_KINDS if k != "listing"]),
    seed=st.integers(0, 999),
)
def test_answers_follow_from_the_scene(names, sign, kind, seed):
    objects = make(names)
    item = ask(kind, objects, sign, (100, 120), np.random.default_rng(seed))
    assert item.kind == kind
    assert item.answer == read(item.text, objects, sign)


def test_listings_by_hand():
    ring, cross = make([("yellow", "ring"), ("blue", "cross")])
    stop = Sign("stop", (10.0, 20.0), (8, 20), 8)
    assert full_listing([], None) == "nothing"
    assert full_listing([], stop) == "a sign that says stop"
    assert full_listing([cross, ring], stop) == "a yellow ring, a sign that says stop and a blue cross"
    assert full_listing([ring], Sign("7", (1.0, 90.0), (2, 4), 2, readable=False)) == "a yellow ring and a sign"


def test_unclear_questions_are_rare_where_clear_ones_can_be_asked():
    objects = make([("red", "ring"), ("blue", "ring"), ("green", "cross"), ("cyan", "square")])
    answers = Counter(ask("colour", objects, None, 120, np.random.default_rng(seed)).answer for seed in range(400))
    assert 25 < answers["none"] < 80 and 25 < answers["I can't tell"] < 80


def test_kinds_of_a_conversation_are_two_to_four_and_signs_are_asked_about_where_they_are():
    sign = Sign("7", (1.0, 1.0), (2, 2), 8)
    with_sign, without = (
        [choose_kinds(item, np.random.default_rng(seed)) for seed in range(300)] for item in (sign, None)
    )
    assert {len(kinds) for kinds in with_sign} == {2, 3, 4}
    assert all(kinds.count(kind) <= 1 for kinds in with_sign for kind in ("count", "listing", "sign"))
    shares = [sum("sign" in kinds for kinds in rows) / len(rows) for rows in (with_sign, without)]
    assert shares[0] > 0.5 > 0.2 > shares[1] > 0
    firsts = {kinds[0] for kinds in with_sign}
    assert firsts == set(DIALOGUE_KINDS) and any("listing" in kinds[:-1] for kinds in with_sign)


def test_wordings_of_all_kinds_are_distinct():
    texts = [text for wordings in (*WORDINGS.values(), SIGN_WORDINGS) for text in wordings]
    assert len(set(texts)) == len(texts) and len(SIGN_WORDINGS) >= 4


def test_a_sign_is_read_if_it_can_be():
    assert [read_sign(None), read_sign(Sign("stop", (0, 0), (1, 1), 9))] == ["none", "stop"]


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="weight.*sign"):
        ask("weight", [], None, 100, np.random.default_rng(0))
