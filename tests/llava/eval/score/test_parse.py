"""What a model means is read from what it says by rules that people can predict."""

from __future__ import annotations

import pytest

from llava.eval.score.parse import letters, option_letter, read_mme_answer, read_pope_answer

OPTIONS = {"A": "a cat", "B": "A dog", "C": "the catalogue", "D": "12"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        # the whole answer is a letter
        ("B", "B"),
        (" b. ", "B"),
        ("(C)", "C"),
        ("**D**", "D"),
        ("E", None),  # no such option
        ("e", None),
        # it begins with a letter
        ("B. A dog", "B"),
        ("(B) I am sure", "B"),
        ("C: the catalogue", "C"),
        ("A dog", "B"),  # an article, and an option's text
        ("D.C. is the capital", None),
        # it declares a letter
        ("The answer is C.", "C"),
        ("I think the correct option is (D), not A", "D"),
        ("Answer: B", "B"),
        # it is an option's text
        ("a dog.", "B"),
        ("  12 ", "D"),
        # one letter is alone
        ("Option C", "C"),
        ("it must be B here", "B"),
        ("A or B", None),  # a tie
        ("A", "A"),
        ("A big animal stands there", None),  # an article
        ("I would say that it is A", "A"),
        ("A is the right one", "A"),
        ("both A and B", None),
        ("A because it purrs", "A"),
        ("A\nit purrs", "A"),
        ("A Siamese", None),
        ("A I think", "A"),
        ("It's B's turn", None),
        # one option's text is in it
        ("I see a cat there", "A"),
        ("I see the catalogue", "C"),
        ("I see a cat and a dog", None),
        ("There are 120", None),
        # nothing
        ("", None),
        ("I cannot tell", None),
    ],
)
def test_the_option_that_an_answer_chooses(text: str, letter: str | None) -> None:
    assert option_letter(text, OPTIONS) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A red car", "B"),
        ("A red car.", "B"),
        ("a red car", "B"),
        ("The red car", "B"),
        ("A truck", "C"),
        ("Answer: A truck", "C"),
        ("The answer is A red car", "B"),
        ("**Answer:** A truck.", "C"),
        ("A red vehicle", None),
        ("A blue car", "A"),
        ("A", "A"),
        ("A. blue car", "A"),
        ("Answer: A", "A"),
        ("The answer is A.", "A"),
        ("The answer is A because of the paint", "A"),
        ("The answer is A, a blue car", "A"),
        ("Answer: b", "B"),
        ("the answer is (c).", "C"),
        ("**Answer:** b", "B"),
        ("Answer: b-side of the truck", "C"),  # a letter of lower case only at the end
        ("Answer: a truck", "C"),
        ("Answer: z", None),
        ("It's a", None),
    ],
)
def test_an_article_is_no_option(text: str, letter: str | None) -> None:
    assert option_letter(text, {"A": "blue car", "B": "red car", "C": "truck"}) == letter


def test_options_that_differ_by_their_article_are_distinguished() -> None:
    options = {"A": "the dog", "B": "a dog", "C": "an"}
    assert [option_letter(text, options) for text in ("the dog", "A dog", "dog", "an")] == ["A", "B", None, "C"]


def test_only_letters_may_be_known() -> None:
    assert [option_letter(text, letters(2)) for text in ("b", "The answer is A", "C", "")] == ["B", "A", None, None]


def test_two_options_of_one_text_are_a_tie() -> None:
    assert option_letter("red", {"A": "red", "B": "Red.", "C": "blue"}) is None
    assert option_letter("blue", {"A": "red", "B": "Red.", "C": "blue"}) == "C"


@pytest.mark.parametrize(
    ("text", "pope", "mme"),
    [
        ("Yes", "yes", "yes"),
        ("No", "no", "no"),
        ("no, there is none", "no", "no"),
        ("Yes, there is. No more.", "yes", "yes"),  # POPE reads the first sentence alone
        ("There is not a dog", "no", None),
        ("NO", "yes", "no"),  # POPE's rule knows "No" and "no"
        ("None", "yes", "no"),  # POPE reads words, MME the first four characters
        ("  yes.", "yes", "yes"),
        ("I do not know", "no", None),
        ("I know", "yes", None),
        ("", "yes", None),
    ],
)
def test_yes_and_no_by_the_rules_of_pope_and_mme(text: str, pope: str, mme: str | None) -> None:
    assert (read_pope_answer(text), read_mme_answer(text)) == (pope, mme)
