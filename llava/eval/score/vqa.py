"""The VQA challenge's soft accuracy and its normalisation of answers, as its EvalAI server computes them.

Source: the published rules of the VQA evaluation (visualqa.org/evaluation) in the form of TextVQA's evaluation.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ANNOTATORS = 10

ARTICLES = ("a", "an", "the")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS)} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`!'

# Contractions. An answer may lack any one apostrophe of each.
CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""

_PERIOD = re.compile(r"\.(?!\d)")


def contractions() -> dict[str, str]:
    """Maps a word that lacks an apostrophe to the word."""
    missing = {
        word[:place] + word[place + 1 :]: word
        for word in CONTRACTED.split()
        for place, sign in enumerate(word)
        if sign == "'"
    }
    return missing | {"somebody'd": "somebodyd"}  # an oddity of the official rules


_CONTRACTIONS = contractions()


def normalise_answer(text: str) -> str:
    """Normalises an answer: lower case, without articles and punctuation, numbers to ten as digits.

    Commas and question marks are removed, and full stops unless a digit follows. Any other sign is removed throughout
    if a blank is next to one of its occurrences, and replaced by a blank otherwise.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    plain = text
    for sign in PUNCTUATION:
        vanishes = f"{sign} " in text or f" {sign}" in text
        plain = plain.replace(sign, "" if vanishes else " ")
    words = (NUMBERS.get(word, word) for word in _PERIOD.sub("", plain).split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def soft_accuracy(said: str, answers: Sequence[str]) -> float:
    """Computes the mean over the annotators of min(1, matches among the other annotators / 3), in [0, 1].

    Args:
        said: The model's answer.
        answers: The ten annotators' answers.

    Raises:
        ValueError: there are not ten answers.
    """
    if len(answers) != ANNOTATORS:
        raise ValueError(f"there are {len(answers)} annotators' answers; the soft accuracy needs {ANNOTATORS}")
    said = normalise_answer(said)
    same = [normalise_answer(answer) == said for answer in answers]
    return sum(min(1.0, (sum(same) - own) / 3) for own in same) / ANNOTATORS
