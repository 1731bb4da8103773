"""A file is replaced as a whole or stays as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from qlip.files import replacing


@pytest.mark.parametrize("exists", [True, False])
def test_the_new_content_replaces_the_old(tmp_path: Path, exists: bool) -> None:
    file = tmp_path / "a.json"
    if exists:
        file.write_text("old")
    with replacing(str(file)) as new:
        new.write_text("new")
        assert file.exists() is exists
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("written", [True, False])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, written: bool) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")
    with pytest.raises(OSError, match="disk full"), replacing(file) as new:
        if written:
            new.write_text("ne")
        raise OSError("disk full")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
