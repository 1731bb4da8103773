"""Runs that are killed, and runs of several processes, give the answers of one that nothing disturbed."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
from tqdm import tqdm

from llava.eval import model_vqa_loader
from llava.eval.run.answers import progress
from llava.eval.run.inputs import image_workers
from tests.interpreter import fork_main
from tests.llava.eval.files import PICTURES, TEXTS

DEADLINE = 600


def wait(condition: Callable[[], bool], process: BaseProcess) -> None:
    """Until the condition holds, the process ends, or the deadline passes."""
    end = time.monotonic() + DEADLINE
    while not condition() and process.is_alive():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.005)


def test_a_killed_run_continues_and_answers_each_question_once(
    flags: list[str], answers: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_workers, "MIN_PREPARE_SECONDS", 0.0)  # workers start for few images too
    kept = 0
    for rows, workers in ((1, 0), (6, 1)):
        process = fork_main(model_vqa_loader.main, *flags, "--batch-size=1", f"--workers={workers}")
        wait(lambda rows=rows: answers.exists() and answers.read_bytes().count(b"\n") >= rows, process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.join(DEADLINE)
        assert process.exitcode == -signal.SIGKILL
        assert len(children) >= workers
        assert psutil.wait_procs(children, timeout=DEADLINE)[1] == []  # no worker outlives it
        left = answers.read_bytes().count(b"\n")
        assert kept <= left < PICTURES * len(TEXTS)
        kept = left
    assert kept >= 6
    assert model_vqa_loader.main(flags) == 0
    assert answers.read_bytes() == whole


def test_two_processes_share_the_questions_and_merge_them_in_order(
    flags: list[str], answers: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the environment that `accelerate launch` and torchrun give their processes."""
    monkeypatch.setattr(progress, "tqdm", lambda **options: tqdm(**{**options, "delay": 0}))  # not after two seconds
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    merged = answers.with_name("answers[2].jsonl")
    logs = [answers.with_name(f"{rank}.log") for rank in (0, 1)]
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared = [*flags, f"--answers-file={merged}", "--batch-size=4"]
    processes = [
        fork_main(model_vqa_loader.main, *shared, stderr=log, RANK=str(i), LOCAL_RANK=str(i), **group)
        for i, log in enumerate(logs)
    ]
    for process in processes:
        process.join(DEADLINE)
    assert [process.exitcode for process in processes] == [0, 0], [log.read_text() for log in logs]
    assert f"{PICTURES * len(TEXTS) // 2}/{PICTURES * len(TEXTS) // 2}" in logs[0].read_text()  # each had a half
    assert merged.read_bytes() == whole
    assert sorted(file.name for file in answers.parent.iterdir()) == ["0.log", "1.log", "answers[2].jsonl"]
