"""The options that a question lists, in the forms in which question files write them."""

from __future__ import annotations

import pytest

from llava.eval import eval_realworldqa
from llava.eval.run.answerer import is_right
from llava.eval.score.choice import read_letter
from llava.eval.score.option_lists import LETTER_ONLY, find_listed_options, split_options

CAT_DOG = {"A": "cat", "B": "dog"}


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("What?\n(A) red \n(B) dark blue\nAnswer with the letter.", {"A": "red", "B": "dark blue"}),
        ("What?\nA. 3.5 m\nB. yes\n", {"A": "3.5 m", "B": "yes"}),
        ("What?\n(A) cat\n(B) dog", CAT_DOG),
        ("What?\nA. cat\nB: dog\n", CAT_DOG),
        ("What?\nA.cat\nB). dog", CAT_DOG),
        ("What?\n- A. cat\n* B. dog", CAT_DOG),
        ("What?\n**A.** cat\n**B.** dog", CAT_DOG),
        ("What?\n**A. cat**\n**B**. dog", CAT_DOG),
        ("What?\na. cat\nb) dog", CAT_DOG),
        ("哪个？\n（A）猫\nB、狗", {"A": "猫", "B": "狗"}),
        ("What?\nA. cat\nB. dog\nC.\nD. cow", CAT_DOG | {"C": "", "D": "cow"}),  # an empty cell of a table
        ("What?\nA.\nB. dog", {"A": "", "B": "dog"}),
    ],
)
def test_a_line_for_each_option(question: str, options: dict[str, str]) -> None:
    assert find_listed_options(question) == options


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("Q: Which animal?\nA. cat\nB. dog", CAT_DOG),
        ("What?\nI. e. which one?\nA. cat\nB. dog\nI. e. one of them", CAT_DOG),
        ("Q: Which animal?\nA. cat\nB. dog\nA:", CAT_DOG),
        ("A: Look!\nB: I do.\nWhat do they see?\nA. cat\nB. dog", CAT_DOG),
        ("A. note\nB. see\nC. go\nWhat?\nA. cat\nB. dog", CAT_DOG),
        ("a. note\nb. see\nc. go\nWhat?\n(A) cat\n(B) dog", CAT_DOG),
        ("a. note\nb. see\nc. go\nWhat? (A) cat (B) dog", CAT_DOG),
        ("A. note\nB. see\nC. go\nWhat? (A) cat (B) dog", CAT_DOG),
        ("Is this one right? (A) note (B) see\nWhat? (A) cat (B) dog", CAT_DOG),
        ("What?\nA. cat\nor\nB. dog", CAT_DOG),
    ],
)
def test_other_lines_are_passed_over_and_the_last_list_counts(question: str, options: dict[str, str]) -> None:
    assert find_listed_options(question) == options


TEA = "A: I like tea.\nB: I like coffee.\nC: Me too."


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (f"Hint: ...\n{TEA}\nQuestion: who?\nChoices:\n(A) A\n(B) B", {"A": "A", "B": "B"}),
        (f"Who?\nOptions:\n(A) A\n(B) B\nHint: ...\n{TEA}", {"A": "A", "B": "B"}),
        (f"Who?\n**Choices:**\n* A. cat\n* B. dog\nThey said:\n{TEA}", CAT_DOG),
        (f"Which? Options: A. cat B. dog\nThey said:\n{TEA}", CAT_DOG),
        (f"They said:\n{TEA}\nOptions:\na) cat\nb) dog", CAT_DOG),
    ],
)
def test_a_list_below_a_heading_counts_before_others(question: str, options: dict[str, str]) -> None:
    assert find_listed_options(question) == options


@pytest.mark.parametrize(
    "question",
    [
        "What is shown?\nA. cat\nB. dog\nD. bird\nE. fish",
        "A. cat\nB. dog\nC bird\nD. fish",
        "A. cat\nB. dog\nE. fish",
        "A.cat\nB.dog\nD.fish",
        "a) cat\nb) dog\nd) fish",
        "A. cat\nB. dog\nD. fish\nC. bird",
        "What? (A) cat (B) dog (D) fish",
        "Options: A. cat B. dog D. fish",
        f"{TEA}\nWhat?\nA. cat\nB. dog\nD. fish",
    ],
)
def test_a_list_without_one_of_its_letters_is_no_list(question: str) -> None:
    """It would make the answer by a letter behind the gap wrong."""
    assert find_listed_options(question) == {}
    assert read_letter({"text": question}, "D") == "D"


@pytest.mark.parametrize("line", ["I. e. one of them", "E.g. this one", "D) another list's end", "Q. Which is it?"])
def test_other_lines_make_no_gap(line: str) -> None:
    assert find_listed_options(f"What?\nA. cat\nB. dog\n{line}") == CAT_DOG


@pytest.mark.parametrize(
    ("question", "last"),
    [
        ("(A) Cancel (B) Select all", "Select all"),
        ("Options: A. Stop B. Please wait", "Please wait"),
        ("(A) Cancel (B) Press Select", "Press Select"),
        ("(A) Cancel (B) Please wait. Answer with the letter.", "Please wait"),
        ("(A) Cancel (B) Stop! Please answer with the letter.", "Stop"),
        ("(A)猫 (B)狗 请直接回答选项字母。", "狗"),
        ("(A)猫 (B)狗。请选择。", "狗"),
        ("A. 猫\nB. 狗 请直接回答选项字母。", "狗"),
        (f"(A) cat (B) dog {LETTER_ONLY['en']}", "dog"),
        (f"A. cat\nB. dog {LETTER_ONLY['en']}", "dog"),
        (f"(A) cat (B) dog\n{LETTER_ONLY['en']}", "dog"),
    ],
)
def test_only_an_instruction_is_cut_off_the_last_option(question: str, last: str) -> None:
    assert find_listed_options(question)["B"] == last


@pytest.mark.parametrize(
    ("question", "options"),
    [
        ("What is it?\n(A) cat (B) dog", CAT_DOG),
        ("What is it? (A) cat, (B) dog. Answer with the option's letter.", CAT_DOG),
        ("Which is it: (A) cat or (B) dog?", CAT_DOG),
        ("What? Options: (A) cat (B) dog", CAT_DOG),
        ("What?\nChoices: A. cat, B. dog, or C. cow", CAT_DOG | {"C": "cow"}),
        ("What is it, of these options: A. cat or B. dog?", CAT_DOG),
        ("The options are: A. cat, B. dog", CAT_DOG),
        ("Options:\n(A) 1 (B) 2\n(C) 3 (D) 4", {"A": "1", "B": "2", "C": "3", "D": "4"}),
        ("What?\n(A) 1\n(B) 2 (C) 3\n(D) 4", {"A": "1", "B": "2", "C": "3", "D": "4"}),
        ("What?\n(A) left of (B) car\n(B) right of (C) bus", {"A": "left of (B) car", "B": "right of (C) bus"}),
    ],
)
def test_several_options_on_a_line(question: str, options: dict[str, str]) -> None:
    assert find_listed_options(question) == options


@pytest.mark.parametrize(
    "question",
    [
        "What is it? A (big) thing.",
        "Is the car (A) behind the bus (B)?",
        "(A) is taller than (B).",
        "Look. (A) and (B) are cars.",
        "Who wrote it? It is by A. Smith and B. Jones.",
        "Who is it?\nA. Turing",
        "What?\n(B) cat\n(C) dog",
        "When?\na.m.\nb. is p.m.",
        "Which one? A: the left one, B: the right one",
        "Look at the two frames. (A) shows a red car and (B) shows a truck. Is the car faster than the truck?",
        "There are labels: (A) near the door, (B) near the window. What is on the table?",
        "(A) shows a car, (B) shows a truck.\nWhich is faster?",
        "(A)是车，(B)是树。哪个更高？",
        "How many options: A. Smith or B. Jones",
    ],
)
def test_text_that_mentions_letters_lists_no_options(question: str) -> None:
    assert find_listed_options(question) == {}
    assert read_letter({"text": question}, "B") == "B"  # an answer by letter is read whatever the list


def test_the_text_before_a_list_is_the_question() -> None:
    assert split_options("What?\nLook.\nA. cat\nB. dog\nAnswer.") == ("What?\nLook.", CAT_DOG)
    assert split_options("What? Options: (A) cat (B) dog") == ("What?", CAT_DOG)
    assert split_options("What? ") == ("What?", {})


@pytest.mark.parametrize("listed", ["Q: Which?\nA. cat\nB. dog", "Which? (A) cat (B) dog", "Which?\na. cat\nb. dog"])
def test_answers_to_such_questions_are_read_by_letter_and_by_text(listed: str) -> None:
    for said in ("B", "(B)", "The answer is B.", "It is a dog.", "B. dog"):
        assert is_right(listed, said, "B")
        assert not is_right(listed, said, "A")
        assert read_letter({"text": listed}, said) == "B"
    assert eval_realworldqa.kind({"text": listed, "answer": "B"}) == "multiple choice"


def test_long_questions_are_read_at_once() -> None:
    """A pattern that backtracks takes minutes over each of these."""
    texts = ["A. ", "(A) ", "? (A) x ", "? (A) (B) x ", "Options: A. ", "(A) x (B) y ,", "(A) x (B) y ?", "** ", " "]
    texts += [": (A) x (B) y ", "? Please "]
    questions = [text * 8_000 + "z" for text in texts] + ["(A) x (B) y" + blank * 20_000 + "z" for blank in " ,?"]
    assert all(len(find_listed_options(question)) <= 2 for question in questions)
