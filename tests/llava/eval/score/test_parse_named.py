"""Answers that name an option by a letter of lower case, or that repeat an option whose text is a letter."""

from __future__ import annotations

import pytest

from llava.eval.score.parse import letters, option_letter

OPTIONS = {"A": "a red car", "B": "a blue bus", "C": "a dog", "D": "none of these"}
LETTERS = {"A": "C", "B": "A", "C": "B", "D": "D"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("(B) A", "B"),
        ("B) A", "B"),
        ("B. A", "B"),
        ("B: A", "B"),
        ("[B] A.", "B"),
        ("**B** A", "B"),
        ("(B)\nA", "B"),
        ("(b) A", "B"),
        ("Option (B) A", "B"),
        ("(D) D", "D"),
        ("(B) C", None),  # not B's text: two letters
        ("(B) (A)", None),
        ("B, A", None),
        ("B A", None),
        ("A", "A"),
    ],
)
def test_a_letter_with_the_text_of_its_option_is_one_letter(text: str, letter: str | None) -> None:
    assert option_letter(text, LETTERS) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Option b", "B"),
        ("option b.", "B"),
        ("Option (b)", "B"),
        ("Option (b).", "B"),
        ("**Option b**", "B"),
        ("option: b", "B"),
        ("Choice c", "C"),
        ("answer b", "B"),
        ("the answer b", "B"),
        ("The correct option b.", "B"),
        ("correct answer: (c)", "C"),
        ("OPTION B", "B"),
        ("Option a", "A"),
        ("letter d", "D"),
        ("It is blue and large.\nOption b", "B"),
        ("Option (b) a blue bus", "B"),
        ("option b) a blue bus", "B"),
        ("Option e", None),
        ("answer a question", None),
        ("I answer a question", None),
        ("Please choose an option", None),
        ("Options", None),
        ("Option (b) is wrong", None),
        ("(b) is wrong", None),
        ("(b) is wrong, the answer is (c)", "C"),
        ("not option b", None),
        ("It is an answer.", None),
        ("The answer is option b", "B"),
    ],
)
def test_a_named_option_is_read_in_any_case(text: str, letter: str | None) -> None:
    assert option_letter(text, OPTIONS) == letter


@pytest.mark.parametrize("letter", "abcdefghijklmnopqrstuvwxyz")
def test_every_letter_may_be_named(letter: str) -> None:
    """Also "a", the article, and "i", the pronoun."""
    assert option_letter(f"Option {letter}", letters(26)) == letter.upper()


def test_an_options_text_goes_before_a_named_letter() -> None:
    options = {"A": "letter B", "B": "letter A", "C": "Option D"}
    assert [option_letter(text, options) for text in ("letter B", "Letter A.", "option d", "letter c")] == [*"ABCC"]


def test_a_long_answer_that_begins_like_a_letter_is_read_at_once() -> None:
    """A pattern that backtracks takes minutes over each of these."""
    said = ["the answer " * 3000, "(B) " + "A " * 10_000, "option (" + " " * 20_000 + "b"]
    assert [option_letter(text, LETTERS) for text in said] == [None, None, "B"]


NUMBERS = {"A": "5", "B": "25", "C": "50"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("It is 25", "B"),
        ("It is 25.", "B"),
        ("25 apples", "B"),
        ("It costs $50, I think", "C"),
        ("There are 5: red ones", "A"),
        ("B.25", "B"),
        ("count:25", "B"),
        ("apples-25", "B"),
        ("It is 0.25", None),
        ("0.5", None),
        ("2.5", None),
        ("$.50", None),
        (".25", None),
        ("3/5", None),
        ("5/8", None),
        ("5.1 m", None),
        ("1,250", None),
        ("5,000", None),
        ("at 10:25", None),
        ("-25", None),
        ("It is -25", None),
        ("25.0", "B"),
        ("It costs $5.00.", "A"),
        ("25%", "B"),
        ("25-year-old", "B"),
        ("25%-50% full", None),
        ("5,25 or 50", None),
        ("5-25", None),
    ],
)
def test_a_number_inside_another_number_is_no_option(text: str, letter: str | None) -> None:
    assert option_letter(text, NUMBERS) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A. a red car B. a blue bus C. a dog", None),
        ("A) a red car B) a blue bus", None),
        ("(A) a red car\n(B) a blue bus\n(C) a dog", None),
        ("a. a red car\nb. a blue bus", None),
        ("Options: A. a red car B. a blue bus", None),
        ("**A.** a red car **B.** a blue bus", None),
        ("A. a red car\nB. a blue bus\n\nB", "B"),
        ("A. a red car B. a blue bus. The answer is B.", "B"),
        ("B. a blue bus", "B"),
        ("B. a blue bus, and no dog", "B"),
        ("B. a blue bus\n\nExplanation: A. a red car is not visible in the picture.", "B"),
        ("B) a blue bus. Option A) a red car is incorrect.", "B"),
        ("**B. a blue bus**\n\n**A. a red car** is not supported.", "B"),
        ("A. a red car, since B. a blue bus would be longer", "A"),
        ("A. a red car. B. a blue bus is wrong.", "A"),
        ("Based on the options provided, the correct answer is: B. a blue bus. A. a red car is not visible.", "B"),
        ("Of the options given, the answer is: B. a blue bus. A. a red car is wrong.", "B"),
        ("Given the choices, I would choose: A. a red car over B. a blue bus.", "A"),
    ],
)
def test_an_answer_that_repeats_the_options_chooses_none_by_its_first(text: str, letter: str | None) -> None:
    assert option_letter(text, {"A": "a red car", "B": "a blue bus", "C": "a dog"}) == letter


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        ("The date is 2020-05-01", {"A": "2020", "B": "2021"}, "A"),
        ("05/12/2020", {"A": "2020", "B": "2021"}, "A"),
        ("12.05.2020", {"A": "2020", "B": "2021"}, "A"),
        ("July 4,2020", {"A": "July 4", "B": "July 5"}, "A"),
        ("The clock says 10:00 AM", {"A": "10", "B": "11"}, "A"),
        ("10:25:00", {"A": "10:25", "B": "10:35"}, "A"),
        ("At 10:25 AM.", {"A": "10:25 AM", "B": "10:35 AM"}, "A"),
        ("2.0", {"A": "1", "B": "2"}, "B"),
        ("between 5-10", {"A": "1-5", "B": "5-10"}, "B"),
        ("about 3/5", {"A": "3/5", "B": "2/5"}, "A"),
        ("It is -5", {"A": "5", "B": "-5"}, "B"),
        ("It is .5 A", {"A": "1 A", "B": ".5 A", "C": "2 A"}, "B"),
        ("1,000 of them", {"A": "1,000", "B": "1000"}, "A"),
    ],
)
def test_dates_times_and_ranges_are_read_as_they_are_written(
    text: str, options: dict[str, str], letter: str | None
) -> None:
    assert option_letter(text, options) == letter
