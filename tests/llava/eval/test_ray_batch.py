"""Ray's answers are model_vqa_loader's, to the byte, even if an actor dies or the run is stopped and continued."""

from __future__ import annotations

import argparse
import json
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from ray.exceptions import ActorDiedError, RayTaskError, UserCodeException

from llava.eval import model_vqa_loader, ray_batch
from llava.eval.run import cluster
from llava.eval.run.answers.jsonl import Row
from llava.model.vision.preparer import Preparer
from playground.scenes import PRESETS, scene

DEADLINE = 600
COLOURS = ("red", "green", "blue")
SHAPES = ("circle", "square", "triangle", "cross", "ring")


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """60 questions about 4 pictures."""
    folder = tmp_path_factory.mktemp("benchmark")
    lines = []
    for i in range(4):
        Image.fromarray(scene(PRESETS["detail"], 31, i).image).save(folder / f"{i}.png")
        texts = [f"Is there a {colour} {shape}?" for colour in COLOURS for shape in SHAPES]
        lines += [{"question_id": f"{i}", "image": f"{i}.png", "text": text} for text in texts]
    (folder / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [f"--question-file={folder / 'q.jsonl'}", f"--image-folder={folder}", "--device=cpu"]


@pytest.fixture(scope="module")
def whole(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    answers = tmp_path_factory.mktemp("whole") / "answers.jsonl"
    assert model_vqa_loader.main([*flags, f"--answers-file={answers}"]) == 0
    return answers.read_bytes()


def kill_an_actor(answers: Path, killed: list[int]) -> None:
    """Kills the process of the actor that holds the model, as soon as it has given answers."""
    end = time.monotonic() + DEADLINE
    while not (answers.exists() and answers.read_bytes().count(b"\n") >= 2):
        if time.monotonic() > end:
            return
        time.sleep(0.01)
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "AnswerStage" in " ".join(child.cmdline()):  # Ray names its processes after what runs in them
                child.kill()
                killed.append(answers.read_bytes().count(b"\n"))


def test_an_actor_killed_at_work_loses_no_answer(
    flags: list[str], whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # by default its workers yield to every other process
    answers = tmp_path / "answers.jsonl"
    cluster = ["--concurrency=1", "--workers=1", "--cpus-per-actor=0.5", "--batch-size=2"]
    killed: list[int] = []
    killer = threading.Thread(target=kill_an_actor, args=(answers, killed))
    killer.start()
    assert ray_batch.main([*flags, f"--answers-file={answers}", *cluster]) == 0
    killer.join(DEADLINE)
    (left,) = killed
    assert 2 <= left < whole.count(b"\n")
    assert answers.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]


def here(args: argparse.Namespace, preparer: Preparer, shares: Path, count: int) -> Iterator[list[Row]]:
    """The stages of `answer_on` one after the other in this process, in place of the cluster."""
    pictures, answers = cluster.ImageStage(preparer, cluster.read_limits(args)), cluster.AnswerStage(args)
    lines = shares.read_text(encoding="utf-8").splitlines()
    assert len(lines) == count
    for line in lines:
        share = pictures(json.loads(line))
        batch = answers({name: np.array([value], dtype=object) for name, value in share.items()})
        yield [json.loads(row) for row in batch["row"]]


def stopped_after(number: int) -> Any:
    """`here`, and then a failure."""

    def answer_on(*arguments: Any) -> Iterator[list[Row]]:
        source = here(*arguments)
        for _ in range(number):
            yield next(source)
        raise RuntimeError("the cluster failed: a node is gone")

    return answer_on


def test_a_run_that_failed_continues_where_it_stopped(
    flags: list[str], whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = tmp_path / "answers.jsonl"
    arguments = [*flags, f"--answers-file={answers}", "--batch-size=4"]
    monkeypatch.setattr(cluster, "answer_on", stopped_after(3))
    assert ray_batch.main(arguments) == 2
    assert "a node is gone" in capsys.readouterr().err
    assert answers.read_bytes().count(b"\n") == 3 * cluster.BATCHES_PER_TASK * 4
    assert [file.name for file in tmp_path.iterdir()] == ["answers.jsonl"]
    asked: list[int] = []
    monkeypatch.setattr(
        cluster,
        "answer_on",
        lambda *arguments: (
            asked.extend(row["metadata"]["index"] for row in rows) or rows for rows in here(*arguments)
        ),
    )
    assert ray_batch.main(arguments) == 0
    assert answers.read_bytes() == whole
    assert sorted(asked) == list(range(3 * cluster.BATCHES_PER_TASK * 4, 60))


def test_answers_made_with_other_settings_are_not_mixed_in(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*flags, f"--answers-file={tmp_path / 'answers.jsonl'}", "--batch-size=1", "--limit=4"]
    monkeypatch.setattr(cluster, "answer_on", stopped_after(1))
    assert ray_batch.main(arguments) == 2
    before = sorted((tmp_path / "answers.jsonl").read_text().splitlines())
    monkeypatch.setattr(cluster, "answer_on", here)
    assert ray_batch.main([*arguments, "--max-tokens=64"]) == 2
    assert "max_tokens is 128 there and 64 now" in capsys.readouterr().err.splitlines()[-1]
    assert sorted((tmp_path / "answers.jsonl").read_text().splitlines()) == before

    def differing(*arguments: Any) -> Iterator[list[Row]]:
        for number, rows in enumerate(here(*arguments)):
            yield [row | {"metadata": row["metadata"] | {"dtype": f"float{16 * (1 + number)}"}} for row in rows]

    monkeypatch.setattr(cluster, "answer_on", differing)
    assert ray_batch.main([*arguments, "--no-resume"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "an answer from another node was made with other settings: dtype is" in error


def test_faults_become_error_rows(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = tmp_path / "q.jsonl"
    first = Path(flags[0].partition("=")[2]).read_text().splitlines()[0]
    questions.write_text(first + "\n" + json.dumps({"question_id": 1, "image": "no.png", "text": "What?"}))
    monkeypatch.setattr(cluster, "answer_on", here)
    arguments = [*flags, f"--question-file={questions}", f"--answers-file={tmp_path / 'a.jsonl'}", "--skip-unreadable"]
    assert ray_batch.main(arguments) == 1
    assert "no such image file" in json.loads((tmp_path / "a.errors.jsonl").read_text())["error"]
    assert (tmp_path / "a.jsonl").read_text().count("\n") == 1


def raised_in_a_stage(error: Exception) -> RayTaskError:
    """What Ray gives where a stage raised; Ray Data raises its own error from the stage's."""
    try:
        try:
            raise error
        except Exception as inner:
            raise UserCodeException("UDF failed to process a data block.\nTo change retry attempts, ...") from inner
    except UserCodeException as outer:
        return RayTaskError("map", traceback.format_exc(), outer, "ray::Map", 1, "127.0.0.1").as_instanceof_cause()


def raised_while_an_actor_starts(error: Exception) -> ActorDiedError:
    try:
        raise error
    except Exception as inner:
        return ActorDiedError(RayTaskError("init", traceback.format_exc(), inner, "ray::Map", 1, "127.0.0.1"))


@pytest.mark.parametrize("fail", [raised_in_a_stage, raised_while_an_actor_starts])
def test_what_failed_on_a_node_is_named_by_its_type_and_words(fail: Any) -> None:
    found = cluster.describe_failure(fail(ValueError("no such checkpoint: x\ngive --model-path")))
    assert found == "ValueError: no such checkpoint: x give --model-path"


def test_an_actor_whose_process_ended_has_died() -> None:
    assert cluster.describe_failure(ActorDiedError()).startswith("ActorDiedError: The actor died unexpectedly")


def test_a_cluster_needs_a_worker(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert ray_batch.main([*flags, "--workers=0"]) == 2
    assert "--workers is 0; it must be at least 1" in capsys.readouterr().err


def test_errors_alone_change_nothing_before_an_answer_shows_the_settings(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first share has no picture; the second one's answer is of other settings than the file's."""
    questions, answers = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    first = json.loads(Path(flags[0].partition("=")[2]).read_text().splitlines()[0])
    lines = [first, {**first, "image": "no.png"}, {**first, "text": "What?"}]
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [*flags, f"--question-file={questions}", f"--answers-file={answers}", "--batch-size=1"]
    arguments += ["--skip-unreadable"]
    monkeypatch.setattr(cluster, "answer_on", here)
    monkeypatch.setattr(cluster, "BATCHES_PER_TASK", 1)
    assert ray_batch.main(arguments) == 1
    answers.write_bytes(answers.read_bytes().splitlines(keepends=True)[0])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert sorted(before) == ["a.errors.jsonl", "a.jsonl", "q.jsonl"]
    assert ray_batch.main([*arguments, "--max-tokens=64"]) == 2
    assert "max_tokens is 128 there and 64 now" in capsys.readouterr().err.splitlines()[-1]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_gpus_that_a_cluster_does_not_have_are_not_waited_for() -> None:
    cluster.check_gpus(0, 0)
    cluster.check_gpus(0.5, 1)
    with pytest.raises(ValueError, match="--gpus-per-actor is 1, but Ray finds 0 GPUs here"):
        cluster.check_gpus(1, 0)
