"""One run at a time writes an answers file; a killed run keeps no other away."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llava.eval.run.answers.lock import only_run

HOLD = "import sys; from pathlib import Path; from llava.eval.run.answers.lock import only_run\n"
HOLD += "with only_run(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_a_second_run_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "answers.jsonl"
    with only_run(path):
        with pytest.raises(ValueError, match=f"answers.jsonl is .* by another run .*{os.getpid()}"), only_run(path):
            pytest.fail("both are at it")
        with only_run(path.with_name("other.jsonl")):
            pass
    assert list(path.parent.iterdir()) == []
    with pytest.raises(RuntimeError), only_run(path):
        raise RuntimeError("a run that failed")
    with only_run(path):
        pass


@pytest.mark.parametrize("killed", [True, False])
def test_the_lock_ends_with_its_process(tmp_path: Path, killed: bool) -> None:
    path = tmp_path / "answers.jsonl"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=f"process {holder.pid} on"), only_run(path):
            pytest.fail("both are at it")
        if killed:
            holder.kill()
        holder.communicate()
    with only_run(path):
        assert f"process {os.getpid()} on" in (tmp_path / "answers.jsonl.lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_of_another_kind_is_left(tmp_path: Path) -> None:
    lock = tmp_path / "poetry.lock"
    lock.write_text("package = []\n")
    with (
        pytest.raises(ValueError, match="poetry.lock is not a lock of a run.*name another file"),
        only_run(tmp_path / "poetry"),
    ):
        pytest.fail("it was taken for a lock")
    assert lock.read_text() == "package = []\n"


def test_the_lock_file_of_a_killed_run_is_reused(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    lock.write_text("process 1 on another machine")
    with only_run(tmp_path / "a"):
        assert lock.read_text().startswith(f"process {os.getpid()} on")
    assert not lock.exists()


def test_a_lock_file_that_its_holder_removes_meanwhile_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, lock, flock = tmp_path / "a", tmp_path / "a.lock", fcntl.flock
    seen: list[Any] = []

    def late(file: Any, how: int) -> None:
        if not seen:
            lock.unlink()
        seen.append(file)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with only_run(path):
        assert lock.exists()
        with pytest.raises(ValueError, match="another run"), only_run(path):
            pytest.fail("both are at it")
    assert len(seen) > 2


def test_a_file_system_without_locks_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(file: Any, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with only_run(tmp_path / "a"):
        pass
    assert "cannot be locked (No locks available)" in caplog.text
