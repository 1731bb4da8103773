"""Every program of the repository ends a user's mistake in one line that names the flag or file, and exit code 2."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from llava.utils import demo_picture_path

ROOT = Path(__file__).parents[1]
ENDS = {"run_command", "parse_and_run", "run_scorer", "labelled_main", "answer_questions", "command", "run_training"}
"""What a `main` ends by: the runner itself, or a function that ends by it."""

PROGRAMS = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for package in ("llava", "playground", "scripts")
    for file in (ROOT / package).rglob("*.py")
    if "\nif __name__ ==" in (text := file.read_text(encoding="utf-8"))
    and ("\ndef main(" in text or file.name != "__main__.py")
    and file.parent.name != "examples"
)


def exit_code(main: Any, flags: Sequence[str]) -> Any:
    try:
        return main(flags)
    except SystemExit as stopped:
        return stopped.code


def refused(module: str, flags: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a program says."""
    assert exit_code(import_module(module).main, flags) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert "error: " in lines[-1] and "Traceback" not in captured.err
    return lines[-1]


def called(node: ast.AST) -> set[str]:
    names = (call.func for call in ast.walk(node) if isinstance(call, ast.Call))
    return {name.id for name in names if isinstance(name, ast.Name)}


@pytest.mark.parametrize("module", PROGRAMS)
def test_a_program_ends_by_the_runner(module: str) -> None:
    """Read from the source: `main(argv)` exists, ends by the runner, and its code is the process's."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    (main,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert called(main) & ENDS
    assert isinstance(main.returns, ast.Name) and main.returns.id == "int"
    if module in PROGRAMS:
        assert main.args.args[-1].arg in ("argv", "arguments")
        last = ast.unparse(tree.body[-1])
        assert last.splitlines()[1].strip() == "sys.exit(main())"


def test_only_the_runner_turns_errors_into_exit_codes() -> None:
    for file in [
        path for package in ("qlip", "llava", "playground", "scripts") for path in (ROOT / package).rglob("*.py")
    ]:
        text = file.read_text(encoding="utf-8")
        if file == ROOT / "qlip" / "command.py" or not re.search(r"\breturn 2\b", text):  # parsing all takes seconds
            continue
        for handler in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ExceptHandler)):
            returned = [inner.value for inner in ast.walk(handler) if isinstance(inner, ast.Return)]
            assert 2 not in [value.value for value in returned if isinstance(value, ast.Constant)], file


NUMBERS = [
    ("llava.serve.cli", "temperature nan -1 inf hot", "max-new-tokens 0 1.5", "alpha -1 nan", "max-tokens 0 -3 96.5"),
    ("llava.serve.cli", "image-size 0"),
    ("llava.eval.run_llava", "temperature nan -0.1", "top_p 0 1.01 2 nan", "num_beams 0", "max_new_tokens 0 -1"),
    ("llava.eval.model_vqa_loader", "batch-size 0 -1 x", "batch-tokens 0", "num-chunks 0 -1", "chunk-idx -1"),
    ("llava.eval.model_vqa_loader", "workers -1", "temperature nan", "top_p 0 2", "num_beams 0", "max_new_tokens 0"),
    ("llava.eval.model_vqa_science", "batch-size 0"),
    ("llava.eval.ray_batch", "concurrency 0", "gpus-per-actor -1", "cpus-per-actor nan", "batch-size 0"),
    ("llava.eval.vstar_likelihood", "num-chunks 0", "chunk-idx -1"),
    ("llava.eval.sweep.command", "limit 0", "max-new-tokens 0", "batch-tokens 0"),
    ("llava.serve.model_worker", "limit-model-concurrency 0", "max-waiting 0", "stream-interval 0", "max-images 0"),
    ("llava.serve.model_worker", "max-batch-tokens 0", "max-join-tokens 0"),
    ("llava.serve.openai_api", "max-batch 0", "max-waiting -1", "prefix-cache-mib -1", "max-image-bytes 0"),
    ("llava.serve.openai_api", "max-image-pixels 0"),
    ("llava.serve.openai_api", "max-body-bytes 0", "max-prompt-chars 0", "port 65536"),
    ("llava.serve.controller", "max-body-bytes 0"),
    ("llava.serve.gradio_web_server", "concurrency-count 0", "max-visitors 0", "native-size 0"),
    ("llava.serve.test_message", "max-new-tokens 0", "temperature nan"),
    ("scripts.vllm_client", "alpha nan", "max-tokens 0", "max-new-tokens 0", "temperature -1"),
    ("scripts.bench.batch", "repeats 0", "workers -1", "batch-size 0"),
    ("scripts.bench.cost", "repeats 0", "sizes 0 15 x"),
    ("scripts.bench.quadtree", "sizes 15", "repeats 0", "threads 0"),
    ("scripts.bench.training", "samples 0", "batch-size 0", "max-length 0", "repeats 0"),
    ("scripts.bench.serving", "clients 0", "requests 0", "rounds 0", "batch 0", "max-new-tokens 0"),
    ("scripts.bench.evidence.run", "scenes 0", "threads 0", "batch-tokens 0"),
    ("scripts.bench.evidence.gallery.__main__", "scenes 0"),
    ("scripts.bench.evidence.question.__main__", "scenes 0", "seed -1", "layers -1", "threads 0"),
    ("playground.evaluate", "n 0", "seed -1", "qlip [] {"),
    ("playground.instructions", "scenes 0", "seed -1", "text-share 1.5 nan"),
    ("playground.scenes", "n 0", "seed -1", "size 0"),
    ("playground.train", "threads 0", "steps-scale 0 nan", "scenes 0", "seed -1"),
    ("playground.train_demo", "threads 0", "seed -1", "pretrain-steps 0", "finetune-steps 0"),
]
WRONG = [
    pytest.param(module, name, value, id=f"{module} --{name}={value}")
    for module, *flags in NUMBERS
    for name, *values in map(str.split, flags)
    for value in values
]


@pytest.mark.parametrize(("module", "name", "value"), WRONG)
def test_an_impossible_number_is_named_by_the_users_own_flag(
    module: str, name: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(module, [f"--{name}={value}"], capsys)
    assert f"argument --{name}" in line and value in line
    assert any(words in line for words in ("; it must be an integer", "; it must be a number", "multiple", "JSON obj"))


ADDRESSES = [
    "nowhere",
    "localhost:21001",
    "ftp://localhost",
    "http://",
    "http://a:99999",
    "http://a:b",
    "http://a b",
    "",
]


@pytest.mark.parametrize(
    ("module", "flag", "address"),
    [
        *(("llava.serve.model_worker", "controller-address", address) for address in ADDRESSES),
        ("llava.serve.model_worker", "worker-address", "nowhere"),
        ("llava.serve.register_worker", "controller-address", "nowhere"),
        ("llava.serve.register_worker", "worker-name", "nowhere"),
        ("llava.serve.test_message", "controller-address", "nowhere"),
        ("llava.serve.test_message", "worker-address", "nowhere"),
        ("llava.serve.gradio_web_server", "controller-url", "nowhere"),
        ("scripts.vllm_client", "server", "nowhere"),
    ],
)
def test_an_address_must_be_one(module: str, flag: str, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(module, [f"--{flag}={address}"], capsys)
    assert f"argument --{flag}" in line and repr(address) in line and "http://HOST:PORT" in line


@pytest.mark.parametrize("key", ["", " "])
@pytest.mark.parametrize(
    "module",
    [
        "llava.serve.controller",
        "llava.serve.gradio_web_server",
        "llava.serve.model_worker",
        "llava.serve.openai_api",
        "llava.serve.test_message",
        "scripts.vllm_client",
    ],
)
def test_a_key_may_not_be_empty(module: str, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(module, ["--api-key", key], capsys)
    assert "argument --api-key: a key may not be empty, and may hold ASCII letters" in line


@pytest.mark.parametrize("flags", [["--api-kye", "secret"], ["--worker-tokn=secret"], ["-ksecret"]])
@pytest.mark.parametrize("module", ["llava.serve.controller", "llava.serve.model_worker", "llava.serve.openai_api"])
def test_the_value_of_an_unknown_flag_may_be_a_secret(
    module: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(module, flags, capsys)
    assert "unrecognized arguments: -" in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "module",
    [
        "llava.serve.cli",
        "llava.eval.run_llava",
        "llava.eval.model_vqa",
        "llava.serve.test_message",
        "llava.eval.sweep.command",
    ],
)
def test_an_unknown_prompt_format_lists_those_there_are(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(module, ["--conv-mode", "vicuna"], capsys)
    assert "argument --conv-mode: invalid choice: 'vicuna'" in line
    assert all(name in line for name in ("v1", "llava_v0", "mistral_instruct", "plain"))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A file that is nothing of what a program reads."""
    path = tmp_path / "notes.txt"
    path.write_text("to do: buy milk\n")
    return path


READERS = [
    ("llava.eval.eval_cvbench", "--question-file NOTES --result-file NOTES"),
    ("llava.eval.eval_gqa", "--question-file NOTES --result-file NOTES"),
    ("llava.eval.eval_mmbench", "--annotation-file NOTES --result-file NOTES"),
    ("llava.eval.eval_pope", "--annotation-dir FOLDER --question-file NOTES --result-file NOTES"),
    ("llava.eval.eval_seed", "--annotation-file NOTES --result-file NOTES"),
    ("llava.eval.eval_textvqa", "--annotation-file NOTES --result-file NOTES"),
    ("llava.eval.eval_vstar", "--question-file NOTES --result-file NOTES"),
    ("llava.eval.model_vqa", "--question-file NOTES"),
    ("llava.eval.model_vqa_mmbench", "--question-file NOTES"),
    ("llava.eval.model_vqa_science", "--question-file NOTES"),
    ("llava.eval.ray_batch", "--question-file NOTES"),
    ("llava.eval.run_llava", "--image-file NOTES --query Hi"),
    ("llava.eval.sweep.command", "--question-file NOTES --image-folder FOLDER --out FOLDER/out"),
    ("llava.eval.vstar_likelihood", "--question-file NOTES --image-folder FOLDER --answers-file FOLDER/a"),
    ("llava.serve.cli", "--image-file NOTES"),
    ("llava.serve.model_worker", "--model-path NOTES --no-register --port 0"),
    ("llava.serve.openai_api", "--model-path NOTES --port 0"),
    ("scripts.bench.evidence.run", "--answers-file NOTES"),
    ("scripts.convert_checkpoint", "--model-path NOTES --out FOLDER/out"),
    ("scripts.convert_gqa_for_eval", "--src NOTES --dst FOLDER/out"),
    ("scripts.convert_mmbench_for_submission", "--annotation-file NOTES --result-dir FOLDER --upload-dir FOLDER"
     " --experiment notes"),
    ("scripts.convert_seed_for_submission", "--annotation-file NOTES --result-file NOTES --result-upload-file X"),
    ("scripts.convert_vizwiz_for_submission", "--annotation-file NOTES --result-file NOTES --result-upload-file X"),
    ("scripts.convert_vqav2_for_submission", "--dir FOLDER --ckpt c --split s"),
    ("scripts.extract_tower", "--model-path NOTES --out FOLDER/out"),
    ("scripts.prepare_eval", "cvbench FOLDER"),
    ("scripts.vllm_client", "--model-path m --query Hi --image-file NOTES"),
    ("llava.train.curve", "NOTES --out FOLDER/loss.svg"),
    ("playground.evaluate", "--model-path NOTES --device cpu"),
    ("playground.instructions", "--out NOTES --scenes 1"),
    ("playground.parts", "--model-path NOTES --out FOLDER/out"),
    ("playground.scenes", "--out NOTES --n 1"),
]  # fmt: skip


@pytest.mark.parametrize(("module", "flags"), READERS)
def test_a_file_of_another_kind_is_named_and_stays(
    module: str, flags: str, notes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(notes.parent)
    line = refused(module, flags.replace("NOTES", str(notes)).replace("FOLDER", folder).split(), capsys)
    assert folder in line
    assert notes.read_text() == "to do: buy milk\n"


def rows(path: Path, *content: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.mark.parametrize(
    ("module", "flags", "output"),
    [
        ("llava.eval.eval_vstar", "--question-file Q --result-file A --json OUT", "--json"),
        ("scripts.convert_gqa_for_eval", "--src A --dst OUT", "--dst"),
        ("scripts.convert_vizwiz_for_submission", "--annotation-file Q --result-file A --result-upload-file OUT",
         "--result-upload-file"),
        ("scripts.convert_seed_for_submission", "--annotation-file Q --result-file A --result-upload-file OUT",
         "--result-upload-file"),
        ("llava.eval.eval_science_qa", "--base-dir . --result-file A --output-file OUT", "--output-file"),
        ("llava.eval.eval_science_qa", "--base-dir . --result-file A --output-result OUT", "--output-result"),
    ],
)  # fmt: skip
def test_what_is_read_is_never_written(
    tmp_path: Path, module: str, flags: str, output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By no other name either."""
    questions = rows(tmp_path / "q.jsonl", {"question_id": 1, "image": "a.png", "text": "?", "label": "A"})
    answers = rows(tmp_path / "a.jsonl", {"question_id": 1, "prompt": "?", "text": "A"})
    link = tmp_path / "link"
    link.symlink_to(answers)
    before = answers.read_bytes()
    for name in (answers, link):
        places = {"Q": str(questions), "A": str(answers), "OUT": str(name)}
        line = refused(module, [places.get(flag, flag) for flag in flags.split()], capsys)
        assert f"{output} {name} is the file of --" in line and "name another file to write" in line
    assert answers.read_bytes() == before


def test_a_quadtree_is_not_drawn_over_its_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, link = tmp_path / "a.png", tmp_path / "b.png"
    picture.write_bytes(demo_picture_path().read_bytes())
    link.symlink_to(picture)
    before = picture.read_bytes()
    for out in (picture, link):
        assert import_module("qlip.cli").main(["show", str(picture), "--out", str(out)]) == 2
        assert f"--out {out} is one of the files that are read; name another file to write" in capsys.readouterr().err
    assert picture.read_bytes() == before
