"""Types of numeric flags, files that are written, and the formatting of a model's failure."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from llava.command import check_outputs, format_error, integer, real
from llava.serve.engine.errors import GenerationError


def test_a_models_failure_is_reported_by_its_cause() -> None:
    assert format_error(GenerationError(RuntimeError("no\nkernel"))) == "no kernel"
    assert format_error(MemoryError()) == "MemoryError"


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        (integer(), ["1", "32", "007"], ["0", "-1", "1.0", "", "one", "nan"]),
        (integer(0, 9), ["0", "9"], ["10", "-1"]),
        (real(), ["0", "0.2", "1e3"], ["-0.1", "inf", "nan", "hot", ""]),
        (real(infinite=True), ["0", "inf"], ["-inf", "nan"]),
        (real(0, 1, above=True), ["0.001", "1"], ["0", "1.001", "nan", "inf"]),
    ],
)
def test_a_number_within_its_bounds_is_taken_and_others_are_repeated_in_the_message(kind, taken, refused) -> None:
    assert [kind(text) for text in taken] == [float(text) for text in taken]
    for text in refused:
        with pytest.raises(argparse.ArgumentTypeError, match=f"^'{text}' is not allowed; it must be a"):
            kind(text)


def test_two_outputs_are_never_one_file(tmp_path: Path) -> None:
    """The second would replace the first; the file may be absent, and the two names may differ."""
    (tmp_path / "b").mkdir()
    first, second = tmp_path / "out", tmp_path / "b" / ".." / "out"
    args = argparse.Namespace(json=first, output_file=second, other=None)
    with pytest.raises(ValueError, match=r"--output-file .*out is the file of --json; name another file to write"):
        check_outputs(args, "json", "output_file", "other")
    first.symlink_to(tmp_path / "target")
    args.output_file = tmp_path / "target"
    with pytest.raises(ValueError, match="is the file of --json"):
        check_outputs(args, "json", "output_file")
    args.output_file = tmp_path / "another"
    check_outputs(args, "json", "output_file", "other")
    first.unlink()
    first.write_text("")
    args.output_file = first
    with pytest.raises(ValueError, match="is the file of --json"):
        check_outputs(args, "json", "output_file")


def test_a_device_takes_several_outputs(tmp_path: Path) -> None:
    null = tmp_path / "null"
    null.symlink_to("/dev/null")
    for other in (Path("/dev/null"), null):
        check_outputs(argparse.Namespace(json=Path("/dev/null"), output_file=other), "json", "output_file")
