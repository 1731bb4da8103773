"""The runner of commands: a user's mistake is one line and exit code 2, a program's fault keeps its traceback."""

from __future__ import annotations

import errno
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest
import safetensors.torch
import torch
import torch.distributed.nn  # as commands do, before a process group
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from qlip.command import OneLineParser, format_error, run_command


def raise_(error: BaseException) -> None:
    raise error


def read_as_safetensors() -> None:
    safetensors.torch.load(b"no header at all")


def read_as_pickle() -> None:
    pickle.loads(b"no pickle")


@pytest.mark.parametrize(
    "work",
    [
        lambda: raise_(ValueError("max_tokens is\n96.5")),
        lambda: raise_(TypeError("max_tokens must be an integer")),
        lambda: raise_(FileNotFoundError("no such file")),
        read_as_safetensors,
        read_as_pickle,
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(work, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("qa", work) == 2
    error = capsys.readouterr().err
    assert error.startswith("qa: error: ") and error.count("\n") == 1 and len(error) > len("qa: error: \n")


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(KeyError):
        run_command("qa", lambda: raise_(KeyError("row")))


def test_debug_shows_a_users_mistake_in_full() -> None:
    with pytest.raises(ValueError, match="no such tower"):
        run_command("qa", lambda: raise_(ValueError("no such tower")), debug=True)


def test_exit_codes_pass_and_an_interrupt_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("qa", lambda: None) == 0
    assert run_command("qa", lambda: 1) == 1
    assert run_command("qa", lambda: raise_(KeyboardInterrupt()), interrupted="stopped") == 130
    assert capsys.readouterr().err == "qa: stopped\n"


def test_a_missing_file_is_named_without_its_number(tmp_path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        (tmp_path / "answers.jsonl").read_text()
    assert format_error(raised.value) == f"{tmp_path / 'answers.jsonl'}: no such file or directory"


def test_a_failure_in_a_dataloader_worker_is_reported_by_the_last_line_of_its_traceback() -> None:
    text = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback:\n  x\nValueError: a b\n"
    assert format_error(ValueError(text)) == "ValueError: a b"


class Trainer:
    """Holds a model of several processes in a cycle of objects, as transformers' trainer does."""

    def __init__(self) -> None:
        self.callbacks = [self]
        self.model = DistributedDataParallel(torch.nn.Linear(2, 1))


@pytest.mark.parametrize("fails", [False, True])
def test_a_process_group_and_its_threads_end_with_the_command(tmp_path: Path, fails: bool) -> None:
    """Those that are left abort the process now and then, as they release tensors while the interpreter ends."""
    threads = psutil.Process().num_threads()

    def work() -> None:
        distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
        assert psutil.Process().num_threads() > threads
        trainer = Trainer()
        trainer.model(torch.ones(1, 2)).sum().backward()
        if fails:
            raise ValueError("the loss is nan")

    assert run_command("qa", work) == (2 if fails else 0)
    assert not distributed.is_initialized()
    assert psutil.Process().num_threads() <= threads


SHORT_WORK = """
from qlip.command import run_command

def work():
    from transformers.utils import logging
    list(logging.tqdm(range(3), desc="Loading weights"))

raise SystemExit(run_command("fit", work))
"""


@pytest.mark.parametrize(("wanted", "shown"), [(None, False), ("0", True)])
def test_a_library_s_bar_appears_only_where_its_work_takes_long(wanted: str | None, shown: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DELAY"}
    environment |= {} if wanted is None else {"TQDM_DELAY": wanted}
    done = subprocess.run([sys.executable, "-c", SHORT_WORK], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("Loading weights" in done.stderr) == shown


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the end", "during the work"])
def test_output_that_nobody_reads_any_more_ends_a_command_silently(lines: int) -> None:
    """As of `qlip show FOLDER --json | head -1`."""
    program = "import sys, time; from qlip.command import run_command\nsys.stdin.readline()\n"
    program += f"sys.exit(run_command('show', lambda: [print('x' * 99) for _ in range({lines})] and None))"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1) as process:
        process.stdout.close()
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert (process.stderr.read(), process.wait()) == (b"", 141)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "the name is empty"),
        ("file:///tmp/x/ok%20.png", "file:///tmp/x/ok%20.png is a URL; give the path, /tmp/x/ok .png"),
        ("https://host/a.png", "https://host/a.png is a URL; download it and give the file"),
    ],
)
def test_a_path_is_neither_empty_nor_a_url(given: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = OneLineParser(prog="p")
    parser.add_argument("--file", type=Path)
    assert parser.parse_args(["--file", "a/b.png"]).file == Path("a/b.png")
    with pytest.raises(SystemExit):
        parser.parse_args(["--file", given])
    assert capsys.readouterr().err == f"p: error: argument --file: {words}\n"


def test_a_command_without_an_output_is_as_good_as_another(monkeypatch):
    """Python has no standard output where a service started it without one."""
    monkeypatch.setattr("sys.stdout", None)
    assert run_command("p", lambda: 0) == 0


def test_the_value_of_an_ambiguous_flag_may_be_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    parser = OneLineParser(prog="p")
    for flag in ("--api-key", "--alpha"):
        parser.add_argument(flag)
    with pytest.raises(SystemExit):
        parser.parse_args(["--a=a secret"])
    assert capsys.readouterr().err == "p: error: ambiguous option: --a could match --api-key, --alpha\n"


def test_an_output_that_became_a_pipe_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by `os.dup2` over a file: where it is cannot be asked any more."""
    out = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(out, encoding="ascii"))
    sys.stdout.write("before\n")
    out.tell = Mock(side_effect=OSError(errno.ESPIPE, "Illegal seek"))
    assert run_command("p", lambda: print("caf\xe9")) == 0
    assert out.getvalue() == b"before\ncaf\\xe9\n"
