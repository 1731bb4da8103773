"""Compares lmms-eval's scores with ours: `python -m scripts.harness.lmms_eval_scores`, where lmms-eval is installed.

Made-up answers, of forms that both read alike, go through both; the scores must be equal. Free text goes through both
normalisations of VQA answers. Needs no model.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from typing import Any

from llava.command import OneLineParser, run_command
from llava.eval import eval_cvbench, eval_mmbench, eval_mme, eval_pope, eval_seed, eval_textvqa, eval_vstar
from llava.eval.score.rows import Key
from llava.eval.score.vqa import normalise_answer

SEED = 77
CHOICES = {"A": "cat", "B": "dog", "C": "cow", "D": "ant"}
LISTED = "What is it?\n" + "\n".join(f"({letter}) {text}" for letter, text in CHOICES.items())
LETTERS = (*CHOICES, "B.", "C. cow")
PIECES = """
The a cat dont isn't He's two NONE 3.5 1,000 U.S.A. - x-ray (b) ? ! .. it's @home a/b 'twas ow's'at 10. $5 , “q”
couldn'tve somebody'd
"""

Pair = tuple[float, float]
"""Our score and lmms-eval's, in the benchmark's unit."""


def theirs(task: str) -> Any:
    """Imports the functions of a task of lmms-eval.

    Raises:
        ImportError: lmms-eval is not installed.
    """
    try:
        return import_module(f"lmms_eval.tasks.{task}")
    except ImportError as error:
        raise ImportError(f"{error}; this comparison needs lmms-eval: pip install lmms_eval") from None


def vstar(draw: random.Random) -> Pair:
    """Scores V* Bench, overall."""
    categories = list(eval_vstar.CATEGORIES)
    rows = [
        {"question_id": i, "text": LISTED, "category": draw.choice(categories), "label": draw.choice("ABCD")}
        for i in range(200)
    ]
    said = [draw.choice(LETTERS) for _ in rows]
    utils = theirs("vstar_bench.utils")
    results = [
        utils.vstar_process_results(row, [text])["vstar_overall_acc"] for row, text in zip(rows, said, strict=True)
    ]
    return eval_vstar.score(rows, said).rows["overall"]["accuracy"], utils.vstar_aggregate_results(results)


def cvbench(draw: random.Random) -> Pair:
    """Scores CV-Bench, overall."""
    rows = [
        {"idx": i, "text": LISTED, "type": "", "task": "Count", "source": source, "answer": f"({draw.choice('ABCD')})"}
        for i, source in enumerate(draw.choices(("ADE20K", "COCO", "Omni3D"), k=200))
    ]
    said = [draw.choice(LETTERS) for _ in rows]
    utils = theirs("cv_bench.utils")
    process = utils.cv_bench_process_results
    results = [process(row, [text])["cv_bench_acc"] for row, text in zip(rows, said, strict=True)]
    other = 100 * utils.cv_bench_default_aggregate_results(results)
    return eval_cvbench.score(rows, said).rows["overall"]["accuracy"], other


def mme(draw: random.Random) -> Pair:
    """Scores MME, perception plus cognition."""
    tasks = (*eval_mme.PERCEPTION, *eval_mme.COGNITION)
    labels: dict[Key, str] = {
        (task, f"{task}{image}", question): draw.choice(("yes", "no"))
        for task in tasks
        for image in range(9)
        for question in "ab"
    }
    said = [draw.choice(("Yes", "No", "yes.", "no, it is", "It is", "maybe")) for _ in labels]
    utils = theirs("mme.utils")
    results: dict[str, list[Any]] = {}
    for ((task, image, _), label), text in zip(labels.items(), said, strict=True):
        for name, result in utils.mme_process_results(
            {"question_id": image, "category": task, "answer": label}, [text]
        ).items():
            results.setdefault(name, []).append(result)
    rows = eval_mme.score(labels, said).rows
    other = sum(utils.mme_aggregate_results(result) for result in results.values())
    return rows["perception"]["score"] + rows["cognition"]["score"], other


def pope(draw: random.Random) -> Pair:
    """Scores POPE, F1 of one category."""
    labels: list[tuple[Key, str]] = [((str(i), "?"), draw.choice(("yes", "no"))) for i in range(200)]
    said = {key: draw.choice(("yes", "no")) for key, _ in labels}
    utils = theirs("pope.utils")
    results = [
        utils.pope_process_results({"answer": label, "question_id": key[0]}, [said[key]])["pope_f1_score"]
        for key, label in labels
    ]
    ours = eval_pope.score({"random": labels}, {"random": said}).rows["mean"]["F1"]
    return ours, 100 * utils.pope_aggregate_f1_score(results)


def textvqa(draw: random.Random) -> Pair:
    """Scores TextVQA."""
    words = ("cat", "The cat.", "two", "2", "dont", "a dog")
    rows = [{"question_id": i, "answers": [draw.choice(words) for _ in range(10)]} for i in range(100)]
    said = [draw.choice(words) for _ in rows]
    ours = eval_textvqa.score(rows, said).rows["all"]["accuracy"]
    process = theirs("textvqa.utils").textvqa_process_results
    accuracies = [process(row, [text])["exact_match"] for row, text in zip(rows, said, strict=True)]
    return ours, 100 * sum(accuracies) / len(rows)


def seed_bench(draw: random.Random) -> Pair:
    """Scores SEED-Bench."""
    choices = {f"choice_{letter.lower()}": text for letter, text in CHOICES.items()}
    rows = [
        {"question_id": i, "answer": draw.choice("ABCD"), "data_type": "image", "question_type_id": 1, **choices}
        for i in range(200)
    ]
    said = [draw.choice(LETTERS) for _ in rows]
    utils = theirs("seedbench.utils")
    results = [utils.seed_process_result(row, [text])["seed_all"] for row, text in zip(rows, said, strict=True)]
    ours = eval_seed.score(rows, {1: "all of them"}, said).rows["all"]["accuracy"]
    return ours, 100 * utils.seed_aggregation_result(results)


def mmbench(draw: random.Random) -> Pair:
    """Scores MMBench, CircularEval over rows of the table."""
    questions, answers, rows = {}, {}, []
    for base in range(1, 101):
        right, steady = draw.choice("ABCD"), draw.random() < 0.5
        for turn in range(4):
            options = [*CHOICES.values()][turn:] + [*CHOICES.values()][:turn]
            letter = "ABCD"[("ABCD".index(right) - turn) % 4]
            index = base + turn * eval_mmbench.COPY
            text = letter if steady or draw.random() < 0.8 else draw.choice("ABCD")
            own = dict(zip("ABCD", options, strict=True)) | {"index": index, "answer": letter, "category": "all"}
            questions[index] = own
            answers[index, 0] = {"text": text, "options": options, "option_char": list("ABCD")}
            rows.append(own | {"question": "?", "prediction": text, "l2-category": "all"})
    evaluator = theirs("mmbench.mmbench_evals").MMBench_Evaluator()
    with redirect_stdout(StringIO()):  # it prints its own table
        other, *_ = evaluator.eval_result(rows, eval_method="static")
    return eval_mmbench.score(questions, answers).rows["CircularEval"]["accuracy"], 100 * float(other)


def normalisations(draw: random.Random, count: int = 20_000) -> Pair:
    """Counts VQA answers that are normalised to another text; theirs is 0."""
    normalise = theirs("_task_utils.vqa_eval_metric").EvalAIAnswerProcessor()
    pieces, gaps = PIECES.split(), (" ", "", "\n", "\t")
    texts = ("".join(draw.choice(pieces) + draw.choice(gaps) for _ in range(draw.randint(1, 6))) for _ in range(count))
    return float(sum(normalise(text) != normalise_answer(text) for text in texts)), 0.0


COMPARED: dict[str, Callable[[random.Random], Pair]] = {
    "V* Bench": vstar,
    "CV-Bench": cvbench,
    "MME": mme,
    "POPE F1": pope,
    "TextVQA": textvqa,
    "SEED-Bench": seed_bench,
    "MMBench, CircularEval": mmbench,
    "normalised VQA answers that differ": normalisations,
}


def compare() -> Iterator[tuple[str, float, float]]:
    """Lists the name, ours and theirs of every comparison."""
    for name, scores in COMPARED.items():
        ours, other = scores(random.Random(SEED))
        yield name, ours, other


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code is 1 if a pair is not equal."""
    parser = OneLineParser(prog="lmms_eval_scores", description="Compare our scorers with lmms-eval's.")
    parser.parse_args(argv)
    return run_command(parser.prog, print_all)


def print_all() -> int:
    """Prints all comparisons; returns 1 if a pair is not equal."""
    equal = True
    for name, ours, other in compare():
        equal &= abs(ours - other) < 1e-6
        print(f"{name}: {ours:.4f}, lmms-eval {other:.4f}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
