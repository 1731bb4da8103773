"""Compares lmms-eval's answers with ours: `python -m scripts.harness.lmms_eval_check`, where lmms-eval is installed.

lmms-eval's own, unmodified `llava` adapter runs a local task of generated scenes with this package, and so does
`llava.eval.model_vqa_loader`; their answers must be the same, one by one. Its log-likelihoods are compared with
`llava.eval.vstar_likelihood`'s. `lmms_eval_scores` compares scores; docs/EVALUATION.md says how to install lmms-eval.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from llava.command import OneLineParser, integer, parse_and_run
from llava.eval.score.rows import Row, read_json_lines
from llava.utils import demo_model_path, device_flag
from playground.presets import PRESETS

if TYPE_CHECKING:
    from llava.serve.engine import ChatEngine

SEED = 77
LONGEST = 64
TASK = """\
task: shapes
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs:
  max_new_tokens: {longest}
  temperature: 0
  do_sample: false
process_results: !function utils.results
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
"""
TASK_FUNCTIONS = """\
from PIL import Image

def visual(doc):
    return [Image.open({images!r} + "/" + doc["image"]).convert("RGB")]

def text(doc, settings=None):
    return doc["text"]

def results(doc, said):
    return {{"right": float(said[0].strip() == doc["answer"])}}
"""


def write_task(folder: Path, count: int) -> list[Row]:
    """Writes scenes with questions, and the task in lmms-eval's form; returns the questions."""
    from playground.scenes import write_scenes

    write_scenes(folder, PRESETS["detail"], SEED, count)
    answers = {row["question_id"]: row["text"] for _, row in read_json_lines(folder / "answers.jsonl")}
    asked = [row for _, row in read_json_lines(folder / "questions.jsonl")]
    questions = [row | {"answer": answers[row["question_id"]]} for row in asked]
    task = folder / "task"
    task.mkdir()
    data = folder / "lmms.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in questions), encoding="utf-8")
    (task / "shapes.yaml").write_text(TASK.format(data=data, longest=LONGEST), encoding="utf-8")
    (task / "utils.py").write_text(TASK_FUNCTIONS.format(images=str(folder / "images")), encoding="utf-8")
    return questions


def harness_answers(folder: Path, model_path: str, device: str, template: str, batch_size: int) -> list[str]:
    """Runs lmms-eval and reads the answers that it logs, in the order of the questions.

    Args:
        folder: with the task that `write_task` wrote.
        model_path, device: the checkpoint, and where it runs.
        template: the checkpoint's; the adapter would ask every model in vicuna_v1.
        batch_size: of lmms-eval.

    Raises:
        RuntimeError: it failed; it exits with 0 after some errors, without a file of answers.
    """
    out = folder / f"lmms-{batch_size}"
    command = [sys.executable, "-m", "lmms_eval", "eval", "--model=llava", "--tasks=shapes", "--force_simple"]
    command += [f"--model_args=pretrained={model_path},device_map=auto,device={device},conv_template={template}"]
    command += [f"--batch_size={batch_size}"]
    command += [f"--include_path={folder / 'task'}", "--log_samples", f"--output_path={out}"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True, timeout=3600, check=False)
    samples = list(out.rglob("*_samples_shapes.jsonl"))
    if done.returncode or len(samples) != 1:
        raise RuntimeError(f"lmms-eval ended with {done.returncode} and {len(samples)} files: {done.stderr[-2000:]}")
    rows = sorted((row for _, row in read_json_lines(samples[0])), key=lambda row: row["doc_id"])
    return [_text(row["filtered_resps"]) for row in rows]


def runner_answers(folder: Path, model_path: str, device: str) -> list[str]:
    """Runs our runner and reads its answers.

    Raises:
        RuntimeError: it failed.
    """
    from llava.eval import model_vqa_loader

    answers = folder / "answers-ours.jsonl"
    files = [f"--question-file={folder / 'questions.jsonl'}", f"--image-folder={folder / 'images'}"]
    flags = [f"--model-path={model_path}", f"--device={device}", *files]
    if model_vqa_loader.main([*flags, f"--answers-file={answers}", f"--max_new_tokens={LONGEST}"]):
        raise RuntimeError("the runner failed")
    return [row["text"] for _, row in read_json_lines(answers)]


def largest_loss_difference(folder: Path, engine: ChatEngine, model_path: str, questions: Sequence[Row]) -> float:
    """Computes the largest relative difference of the losses of right answers; the adapter takes pixels in float16."""
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.simple.llava import Llava
    from PIL import Image

    from llava.eval.run.inputs.questions import Question
    from llava.eval.run.likelihood import Choice, choose
    from llava.model.vision.preparer import Preparer

    paths = [folder / "images" / row["image"] for row in questions]
    pictures = [Image.open(path).convert("RGB") for path in paths]
    device = str(engine.model.device)
    adapter = Llava(pretrained=model_path, device_map="auto", device=device, conv_template=engine.conv_mode)
    adapter.task_dict = {"shapes": {"test": list(range(len(questions)))}}
    requests = [
        Instance(
            request_type="loglikelihood",
            arguments=(row["text"], row["answer"], lambda doc: [pictures[doc]], number, "shapes", "test"),
            idx=number,
            metadata={"task": "shapes", "doc_id": number, "repeats": 1},
        )
        for number, row in enumerate(questions)
    ]
    theirs = [loss for loss, _ in adapter.loglikelihood(requests)]
    differences, preparer = [], Preparer.of(engine.model.get_vision_tower())
    for row, path, loss in zip(questions, paths, theirs, strict=True):
        choice = Choice(row["text"], {"A": row["answer"]})
        answer = choose(engine, preparer, Question(0, row["text"], row["text"], path, row["image"]), choice)
        ours = answer.question.extra["losses"]["A"]
        differences.append(abs(loss - ours) / max(ours, 0.01))
    return max(differences)


def check(args: argparse.Namespace) -> None:
    """Runs all comparisons.

    Raises:
        ImportError: lmms-eval is not installed.
        RuntimeError: something differs.
    """
    from llava.model.builder import load_pretrained_model
    from llava.model.loading.chat_template import choose_template
    from llava.serve.engine import ChatEngine

    if find_spec("lmms_eval") is None:
        raise ImportError("this comparison needs lmms-eval: pip install lmms_eval")
    model_path = str(Path(args.model_path).resolve())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        questions = write_task(folder, args.scenes)
        ours = runner_answers(folder, model_path, args.device)
        tokenizer, model, processor, context = load_pretrained_model(model_path, device=args.device)
        template = choose_template(args.model_path, model.config)
        engine = ChatEngine(tokenizer, model, processor, context, template)
        right = sum(text == row["answer"] for text, row in zip(ours, questions, strict=True))
        print(f"{len(ours)} answers of the runner, {len(set(ours))} different ones, {right} right")
        differing = 0
        for batch_size in (1, 4):
            theirs = harness_answers(folder, model_path, args.device, engine.conv_mode, batch_size)
            pairs = [pair for pair in zip(questions, ours, theirs, strict=True) if pair[1] != pair[2]]
            print(f"lmms-eval, batch size {batch_size}: {len(ours) - len(pairs)} of {len(ours)} answers the same")
            for question, own, other in pairs:
                print(f"  {question['text']}: {own!r}, lmms-eval {other!r}")
            differing += len(pairs)
        difference = largest_loss_difference(folder, engine, model_path, questions)
        print(f"log-likelihoods: differ by at most {difference:.2%}")
    if differing or difference > 0.05:
        raise RuntimeError("lmms-eval and this package disagree")


def _text(responses: str | list[str]) -> str:
    return (responses if isinstance(responses, str) else responses[0]).strip()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = OneLineParser(prog="lmms_eval_check", description="Compare lmms-eval's answers with the runner's.")
    parser.add_argument("--model-path", default=demo_model_path(), help="a checkpoint (default: the embedded model)")
    parser.add_argument("--device", type=device_flag, default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument(
        "--scenes", type=integer(), default=6, help="number of scenes, nine questions each (%(default)s)"
    )
    return parse_and_run(parser, check, argv)


if __name__ == "__main__":
    sys.exit(main())
