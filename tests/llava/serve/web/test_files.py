"""The page's folder of pictures goes with its process, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from llava.serve.gradio_web_server import main
from llava.serve.web import launch
from llava.serve.web.files import LOCK, PREFIX, remove_abandoned

SERVER = """
import os, signal, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
from llava.serve.web.files import exit_at_sigterm, own_files
with exit_at_sigterm(), own_files():
    print("the page's folder is", os.environ["GRADIO_TEMP_DIR"], flush=True)
    threading.Event().wait()
"""

posix = pytest.mark.skipif(os.name != "posix", reason="processes of Windows get no signals")


def start(folder: Path) -> subprocess.Popen[str]:
    """Starts a server whose temporary files are in a folder, and waits for its first line."""
    variables = {**os.environ, "TMPDIR": str(folder)}
    variables.pop("GRADIO_TEMP_DIR", None)
    process = subprocess.Popen([sys.executable, "-c", SERVER], env=variables, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().startswith("the page")
    return process


def end(process: subprocess.Popen[str], number: int) -> None:
    process.send_signal(number)
    process.communicate(timeout=120)


def folders(parent: Path) -> list[Path]:
    return list(parent.glob(f"{PREFIX}*"))


@posix
def test_sigterm_ends_the_page_s_command_which_removes_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(*page: Any, **options: Any) -> None:
        assert folders(tmp_path) == [Path(os.environ["GRADIO_TEMP_DIR"])]
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.delenv("GRADIO_TEMP_DIR")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(launch, "serve", serve)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main(["--controller-url=http://127.0.0.1:1", "--port=0"])
    assert ended.value.code == 128 + signal.SIGTERM
    assert folders(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is before


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_removes_its_folder_and_that_of_a_killed_one(tmp_path: Path, number: int) -> None:
    killed = start(tmp_path)
    (left,) = folders(tmp_path)
    end(killed, signal.SIGKILL)
    assert folders(tmp_path) == [left]
    following = start(tmp_path)
    (own,) = folders(tmp_path)
    remove_abandoned(tmp_path)  # as a third server does
    assert own != left and folders(tmp_path) == [own]
    end(following, number)
    assert folders(tmp_path) == []


def test_folders_that_are_no_server_s_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}without-lock").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / LOCK).touch()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "elsewhere")
    remove_abandoned(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
