"""The letter of an answer that models write at length: other scripts, decorations, explanations, second thoughts."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llava.eval.score.parse import letters, option_letter

OPTIONS = {"A": "a red car", "B": "a blue bus", "C": "a dog", "D": "none of these"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("选项B", "B"),
        ("答案是B", "B"),
        ("B是正确的", "B"),
        ("答案：Ｂ。", "B"),
        ("正确答案为（B）", "B"),
        ("我选择B，因为图中是公交车", "B"),
        ("故选B", "B"),
        ("B。公交车是蓝色的", "B"),
        ("【B】", "B"),
        ("答案是b。", "B"),
        ("选B不选A", "B"),
        ("B而非A", "B"),
        ("答案：A。不对，答案是B。", "B"),
        ("B是错误的，C是对的", "C"),
        ("A和B都不对，选C", "C"),
        ("答案不是B而是C", "C"),
        ("A不正确，B正确", "B"),
        ("选项A和C没有显示，所以是B", "B"),
        ("答案是A或B", None),
        ("答案是E", None),
        ("它是A型血", None),
        ("这是公交车", None),
    ],
)
def test_chinese_is_read_without_blanks(text: str, letter: str | None) -> None:
    assert option_letter(text, OPTIONS) == letter


def test_an_option_in_chinese_is_found_in_a_sentence_and_a_shorter_one_inside_it_is_not() -> None:
    options = {"A": "公交车", "B": "蓝色公交车", "C": "维生素C"}
    said = ("这是蓝色公交车。", "图中是公交车", "图中是维生素C。", "不是公交车")
    assert [option_letter(text, options) for text in said] == ["B", "A", "C", None]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        # the last declaration counts, in any case
        ("ANSWER IS D. A is wrong.", "D"),
        ("The answer is B. No: the answer is C.", "C"),
        ('The choice "It is wet. The answer is B." is wrong. The answer is C.', "C"),
        ("A. a red car is not there. The answer is B.", "B"),
        ("(A) a red car (B) a blue bus (C) a dog: the correct option is (B)", "B"),
        ("THE CORRECT OPTION IS (C).", "C"),
        ("Final answer: **B**", "B"),
        (r"$\boxed{B}$", "B"),
        ("The answer is (b) a blue bus", "B"),
        ("C is on the left, B is correct.", "B"),
        ("The correct answer to the question is (A) a red car. Options B and C are not shown.", "A"),
        ("The answer options are A, B, C and D. I choose B.", "B"),
        ("The answer is B, A is on the left.", "B"),
        # letters that are ruled out
        ("The answer is not B but C.", "C"),
        ("It isn't B. It's C.", "C"),
        ("The answer is C rather than B", "C"),
        ("Neither A nor B is right. C", "C"),
        ("A and B are wrong, so C", "C"),
        ("Not A.", None),
        ("I cannot choose A", None),
        ("The correct option is not A or B but D", "D"),
        ("Option A is incorrect. Option B is correct.", "B"),
        # two at once are none
        ("The answer is A or B.", None),
        ("The answer is A, B and C.", None),
        ("Answer: A, B, C, D", None),
        ("The answer is B, A is on the left.", "B"),
        ("The answer to whether it is A or B is C.", "C"),
        # lines and quotes
        ("B\nThe bus is blue, A is red.", "B"),
        ("I see A red thing.\nB", "B"),
        ("Answer:\nB", "B"),
        ("'B'", "B"),
        ("The answer is “B”.", "B"),
        ("B - a blue bus", "B"),
        ("b) a blue bus", "B"),
        ('The answer is "C", since "A" is red', "C"),
        # no letters
        ("A red car", "A"),
        ("C++ on a B&W screen", None),
        ("A RED TRUCK", None),
        ("It has an A-frame", None),
        ("Washington D.C. perhaps", None),
        # texts
        ("It is not a dog", None),
        ("It is not a dog but a blue bus", "B"),
    ],
)
def test_a_long_answer_is_read_to_its_end(text: str, letter: str | None) -> None:
    assert option_letter(text, OPTIONS) == letter


def test_a_letter_inside_an_options_text_is_none() -> None:
    options = {"A": "vitamin A", "B": "vitamin C", "C": "A and B"}
    said = ("It is vitamin C.", "The answer is A and B", "B, vitamin C", "vitamin D")
    assert [option_letter(text, options) for text in said] == ["B", "C", "B", None]


def test_i_is_the_pronoun_before_a_word() -> None:
    assert [option_letter(text, letters(9)) for text in ("I think B", "I", "The answer is I.")] == ["B", "I", "I"]


LETTER = st.sampled_from("ABCD")
DECORATIONS = (
    "{}",
    "({})",
    "[{}]",
    "{}.",
    "{})",
    "{}:",
    "**{}**",
    "'{}'",
    '"{}"',
    "“{}”",
    "`{}`",
    "【{}】",
    " {}\n",
    "{}。",
)
DECLARATIONS = (
    "The answer is {}.",
    "Answer: {}.",
    "The correct option is {}.",
    "I choose {}.",
    "答案是{}。",
    "故选{}。",
)
# Words without a meaning for a rule: no negation, no "is", no option's text, no single letter.
WORDS = st.lists(st.sampled_from(("sky", "wheel", "since", "paint", "near", "because", "shows", "round")), min_size=1)


@given(LETTER, st.sampled_from(DECORATIONS), st.booleans())
def test_a_bare_letter_is_read_in_any_decoration_and_case(letter: str, decoration: str, lower: bool) -> None:
    assert option_letter(decoration.format(letter.lower() if lower else letter), OPTIONS) == letter


@given(LETTER, st.sampled_from((*DECORATIONS[1:6], *DECLARATIONS)), WORDS, st.sampled_from((" ", "\n", "\n\n")))
def test_an_explanation_behind_it_changes_nothing(letter: str, form: str, words: list[str], gap: str) -> None:
    assert option_letter(f"{form.format(letter)}{gap}{' '.join(words).capitalize()}.", OPTIONS) == letter


@given(WORDS, LETTER, LETTER, st.sampled_from(DECLARATIONS), st.sampled_from(DECLARATIONS))
def test_the_last_of_two_declarations_counts(words: list[str], one: str, two: str, first: str, second: str) -> None:
    assert option_letter(f"{first.format(one)} {' '.join(words)}. {second.format(two)}", OPTIONS) == two


@given(LETTER, st.sampled_from(DECLARATIONS[:4]))
def test_capitals_change_nothing(letter: str, form: str) -> None:
    assert option_letter(form.upper().format(letter), OPTIONS) == letter


@given(st.text(st.sampled_from(string.ascii_letters + " .,:;()'\"\n\t*选答案是不B"), max_size=60), st.integers(0, 6))
def test_any_text_gives_an_option_or_none_and_full_width_is_the_same(text: str, count: int) -> None:
    letter = option_letter(text, letters(count))
    assert letter is None or letter in letters(count)
    wide = "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)
    assert option_letter(wide, letters(count)) == letter


def test_an_answer_that_repeats_itself_is_read_at_once() -> None:
    """A pattern that backtracks takes minutes over each of these."""
    said = ["A and " * 3000, "the answer is " * 2000, "(" * 20_000 + "A", "answer is" + " " * 20_000, "not the " * 3000]
    assert [option_letter(text, OPTIONS) for text in said] == ["A", None, "A", None, None]


@pytest.mark.parametrize("text", ["A, B", "A, B, C, D", "A; B", "(A) (B)", "(A), (B), (C)", "A\nB", "B, C."])
def test_an_answer_that_names_several_letters_chooses_none(text: str) -> None:
    assert option_letter(text, letters(6)) is None


@pytest.mark.parametrize(
    ("text", "letter"), [("O", "B"), ("o.", "B"), ("Option N", "C"), ("A", "A"), ("H", "A"), ("Z", None), ("D", "D")]
)
def test_an_options_text_may_be_a_letter_that_is_no_options(text: str, letter: str | None) -> None:
    """Chemical elements: "O" is oxygen's, and no option is called so."""
    assert option_letter(text, {"A": "H", "B": "O", "C": "N", "D": "X"}) == letter
