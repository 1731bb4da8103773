"""MME: perception and cognition from pairs of yes/no questions about an image: `python -m llava.eval.eval_mme`.

A task's points are accuracy plus "accuracy+", the share of images with both questions right, each in %; perception and
cognition are the sums over their tasks, at most 2000 and 800. Source: arXiv 2306.13394 and its `calculation.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llava.eval.score.benchmark import ANNOTATIONS, Benchmark
from llava.eval.score.parse import read_mme_answer
from llava.eval.score.rows import Key, Row, index_rows, read_text
from llava.eval.score.score import Results, Score, run_scorer, score_parser

BENCHMARK = Benchmark(
    name="MME",
    script="mme",
    folder="MME",
    questions="llava_mme.jsonl",
    images="MME_Benchmark_release_version",
    data="`MME/MME_Benchmark_release_version/`",
    measures="perception, cognition, tasks",
    needs={
        "llava_mme.jsonl": ANNOTATIONS,
        "MME_Benchmark_release_version": "MME's release, as its authors give it on request at"
        " https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation, unpacked in {dir}",
    },
    labels={"--data-dir": "MME_Benchmark_release_version"},
    scorer="eval_mme",
)

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
INSTRUCTIONS = ("Answer the question using a single word or phrase.", "Please answer yes or no.")


def score(labels: Mapping[Key, str], said: Sequence[str]) -> Score:
    """Scores answers.

    Args:
        labels: (task, image, question) -> "yes" or "no", two questions for every image, of all fourteen tasks.
        said: The model's answers, in the same order.

    Raises:
        ValueError: a task has no questions, or an image not two.
    """
    right: dict[str, dict[str, list[bool]]] = {task: {} for task in (*PERCEPTION, *COGNITION)}
    for (task, image, _), label, text in zip(labels, labels.values(), said, strict=True):
        right[task].setdefault(image, []).append(read_mme_answer(text) == label)
    if empty := [task for task, images in right.items() if not images]:
        raise ValueError(f"there are no questions of {', '.join(empty)}; perception and cognition sum over all tasks")
    tasks = {task: task_score(images) for task, images in right.items()}
    sums = {
        name: {"score": sum(tasks[task]["score"] for task in group)}
        for name, group in (("perception", PERCEPTION), ("cognition", COGNITION))
    }
    return Score("MME", sums | tasks)


def task_score(images: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    """Computes `score`, `acc` and `acc+` of a task from image -> whether each of its two answers is right."""
    if odd := [name for name, pair in images.items() if len(pair) != 2]:
        raise ValueError(f"image {odd[0]!r} has {len(images[odd[0]])} questions; MME asks two about each")
    single = 100 * sum(sum(pair) for pair in images.values()) / (2 * len(images))
    both = 100 * sum(all(pair) for pair in images.values()) / len(images)
    return {"score": single + both, "acc": single, "acc+": both, "images": len(images)}


def read_labels(folder: Path) -> dict[Key, str]:
    """Reads the answers in MME's release: a text file per image with two lines `question TAB answer`.

    The files are in TASK/ or in TASK/questions_answers_YN/.

    Raises:
        ValueError: a line is not a question and an answer.
    """
    labels: dict[Key, str] = {}
    for task in (*PERCEPTION, *COGNITION):
        inner = folder / task / "questions_answers_YN"
        for path in sorted((inner if inner.is_dir() else folder / task).glob("[!.]*.txt")):  # macOS adds "._NAME.txt"
            for number, line in enumerate(read_text(path).split("\n"), start=1):
                if not line.strip():
                    continue
                question, _, label = line.partition("\t")
                if label.strip().lower() not in ("yes", "no"):
                    raise ValueError(f"{path}:{number}: the answer is {label.strip()!r}; it must be Yes or No")
                labels[task, path.stem, strip_instructions(question)] = label.strip().lower()
    if not labels:
        raise ValueError(f"{folder} holds no folder of a task of MME with its text files")
    return labels


def strip_instructions(prompt: str) -> str:
    """Removes the instructions from a question, and repeated blanks."""
    for instruction in INSTRUCTIONS:
        prompt = prompt.replace(instruction, " ")
    return " ".join(prompt.split())


def index_by_question(answers: Mapping[Key, Row], path: Path) -> dict[Key, Row]:
    """Maps (task, image, question) to answers; LLaVA's `question_id` is TASK/IMAGE.png, the same for both questions."""
    rows = []
    for name, prompt in answers:
        task, slash, image = name.replace("\\", "/").partition("/")
        if not slash:
            raise ValueError(f"{path}: question_id is {name!r}; MME's are TASK/IMAGE")
        key = {"task": task, "image": Path(image).stem, "question": strip_instructions(prompt)}
        rows.append((str(path), key | {"text": answers[name, prompt]["text"]}))
    return index_rows(path, rows, ("text",), ("task", "image", "question"))


def score_files(args: argparse.Namespace) -> Score:
    """Scores the answers that the flags name."""
    labels = read_labels(args.data_dir)
    results = Results.of(args)
    said = index_by_question(results.by("question_id", "prompt"), results.path)
    return score(labels, results.texts(labels, said, args.data_dir))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code."""
    parser = score_parser("eval_mme", "Score answers to MME.")
    parser.add_argument("--data-dir", type=Path, required=True, help="MME_Benchmark_release_version")
    return run_scorer(parser, score_files, argv)


if __name__ == "__main__":
    sys.exit(main())
