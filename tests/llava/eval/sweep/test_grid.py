"""The flags of a sweep become cells, and errors in them are reported before a model is loaded."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from llava.eval.sweep import command, measure
from llava.eval.sweep.grid import make_cells, make_task, parse_value, read_axes, read_results
from llava.serve.loading import QLIP_FLAGS
from llava.utils import demo_model_path
from qlip import QLIPConfig, cli


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "load_engine", lambda _: pytest.fail("no model may be loaded"))


@pytest.fixture
def material(tmp_path: Path) -> Path:
    """One question about one picture."""
    folder = tmp_path / "material"
    folder.mkdir()
    Image.new("RGB", (28, 28)).save(folder / "a.png")
    line = {"question_id": 1, "image": "a.png", "text": "What?", "answer": "red"}
    (folder / "questions.jsonl").write_text(json.dumps(line))
    return folder


def flags(material: Path, out: Path, *more: str) -> list[str]:
    return [
        "--question-file",
        str(material / "questions.jsonl"),
        "--image-folder",
        str(material),
        "--out",
        str(out),
        *more,
    ]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("alpha", "inf", float("inf")),
        ("max_tokens", "none", None),
        ("max_tokens", "64", 64),
        ("thumbnail", "true", True),
        ("criterion", "random", "random"),
        ("seed", "3", 3),
        ("mlp", "none", None),
        ("mlp", "a/b", str(Path("a/b").resolve())),
        ("size_bias", "-0.5", -0.5),
    ],
)
def test_a_value_is_read_by_the_type_of_its_setting(name: str, text: str, value: object) -> None:
    read_value = parse_value(name, text)
    assert read_value == value
    assert type(read_value) is type(value)


def test_every_setting_can_be_swept() -> None:
    """Whatever a setting's default is, its text is read back as that."""
    for name, default in QLIPConfig().to_dict().items():
        assert parse_value(name, str(default).lower()) == default


@pytest.mark.parametrize(
    "line", ["{broken\n", "[]\n", '{"settings": {}}\n', '{"task": {}, "settings": {"alpha": -1}}\n']
)
def test_a_whole_line_that_is_no_cell_is_left_and_named(
    material: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    (material / "results.jsonl").write_text(line)
    assert command.main(flags(material, material)) == 2
    assert "results.jsonl:1 is not a cell of a sweep" in capsys.readouterr().err
    assert (material / "results.jsonl").read_text() == line


def test_a_cell_of_before_budgets_had_an_order_was_split_by_score(tmp_path: Path) -> None:
    settings = QLIPConfig(max_tokens=96).to_dict()
    del settings["split_order"]
    (tmp_path / "results.jsonl").write_text(json.dumps({"task": {}, "settings": settings, "accuracy": {}}) + "\n")
    (record,), _ = read_results(tmp_path / "results.jsonl")
    assert record["settings"] == QLIPConfig(max_tokens=96, split_order="score").to_dict()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--alpha", "high"], "alpha is 'high'; it must be a number"),
        (["--alpha", "-1"], "alpha is -1.0; it must be >= 0"),
        (["--max-tokens", "64.5"], "max_tokens is '64.5'; it must be an integer or none"),
        (["--image-size", "0"], "image_size is 0; it must be at least 1"),
        (["--set", "colour=red"], "unknown QLIP setting 'colour'; allowed are alpha, criterion,"),
        (["--set", "criterion=nice"], "criterion is 'nice'; allowed are 'gradient',"),
        (["--set", "criterion"], "--set takes NAME=V1,V2, got 'criterion'"),
        (["--set", "thumbnail=true,maybe"], "thumbnail is 'maybe'; it must be true or false"),
        (["--set", "structure_size=5,6"], "structure_size is 6; it must be odd"),
        (["--set", "seed=none"], "seed is 'none'; it must be an integer"),
        (["--set", "alpha=0.1", "--alpha", "0.2"], "alpha is given twice"),
        (["--set", "interpolation=mlp"], "interpolation is 'mlp' but mlp is None"),
        (["--set", "interpolation=mlp", "mlp=absent.safetensors"], "there is no MLP prior at"),
        (["--budget", "question"], "a sweep encodes each image once for all its questions, so budget can't be"),
        (["--set", "budget=question,score"], "a sweep encodes each image once for all its questions"),
        (["--no-qlip", "--alpha", "0.1"], "--no-qlip contradicts values of alpha"),
        (["--no-qlip", "--no-clip"], "--no-clip and --no-qlip leave nothing to measure"),
        (["--model-path", "no/such/model"], "there is no checkpoint folder 'no/such/model'"),
        (["--question-file", "absent.jsonl"], "absent.jsonl"),
    ],
)
def test_impossible_flags_are_reported_in_one_line(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert command.main(flags(material, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("qlip sweep: error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_another_checkpoint_in_the_same_folder_or_other_images_are_another_task(material: Path, tmp_path: Path) -> None:
    """Else a sweep after more training would report the cells of the weights before."""
    model = Path(shutil.copytree(demo_model_path(), tmp_path / "model"))
    given = {
        **dict.fromkeys(("model_base", "conv_mode", "answers_file", "limit"), None),
        **dict.fromkeys(("load_8bit", "load_4bit"), False),
        "max_new_tokens": 8,
        "question_file": material / "questions.jsonl",
    }
    before = make_task(argparse.Namespace(**given, model_path=str(model), image_folder=material))
    assert make_task(argparse.Namespace(**given, model_path=f"{model}/.", image_folder=material / ".")) == before
    other = make_task(argparse.Namespace(**given, model_path=str(model), image_folder=tmp_path))
    assert replace(other, image_folder=before.image_folder) == before != other
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    after = make_task(argparse.Namespace(**given, model_path=str(model), image_folder=material))
    assert replace(after, checkpoint=before.checkpoint) == before != after


def test_a_missing_picture_is_named(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(flags(material, tmp_path, "--image-folder", str(tmp_path))) == 2
    assert f"1 of 1 images are missing, for example {tmp_path / 'a.png'}" in capsys.readouterr().err


def test_a_question_without_a_right_answer_is_named(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (material / "questions.jsonl").write_text(json.dumps({"question_id": 7, "image": "a.png", "text": "What?"}))
    assert command.main(flags(material, tmp_path)) == 2
    assert "question 7 has no right answer; give --answers-file" in capsys.readouterr().err


def test_a_text_only_model_is_refused(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert command.main(flags(material, tmp_path / "out", "--model-path", str(tmp_path))) == 2
    assert f"{tmp_path} has no vision tower" in capsys.readouterr().err


def test_cells_are_the_product_of_what_is_given_and_none_is_there_twice(material: Path) -> None:
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    command.add_flags(parser)
    more = ["--alpha", "0.1", "0.2", "0.1", "--image-size", "224", "none", "--set", "criterion=random", "seed=0,1"]
    options = parser.parse_args(flags(material, material, *more))
    cells = make_cells(options, read_axes(options))
    own = QLIPConfig.from_dict(json.loads((demo_model_path() / "config.json").read_text())["qlip"])
    expected = {
        replace(own, alpha=alpha, image_size=size, criterion="random", seed=seed)
        for alpha in (0.1, 0.2)
        for size in (224, None)
        for seed in (0, 1)
    }
    assert cells[0] is None
    assert len(cells) == 1 + 8
    assert set(cells[1:]) == expected


FLAG_VALUES = {"alpha": "0.3", "max_tokens": "99", "image_size": "99", "budget": "score", "tiling": "tiles"}
FLAG_VALUES |= {"split_order": "score"}


@pytest.mark.parametrize("name", QLIP_FLAGS)
def test_every_flag_of_the_quadtree_is_an_axis_or_an_error(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """None may be dropped: the sweep would measure another setting than its command line says."""
    value, flag = FLAG_VALUES[name], "--" + name.replace("_", "-")
    parser = argparse.ArgumentParser(conflict_handler="resolve")
    command.add_flags(parser)
    options = parser.parse_args(flags(material, material, flag, value))
    axes = read_axes(options)
    assert axes == {name: [parse_value(name, value)]}
    assert all(getattr(cell, name) == axes[name][0] for cell in make_cells(options, axes)[1:])
    assert command.main(flags(material, tmp_path / "out", flag, value, "--set", f"{name}={value}")) == 2
    assert f"{name} is given twice" in capsys.readouterr().err
    assert command.main(flags(material, tmp_path / "out", flag, value, "--no-qlip")) == 2
    assert f"--no-qlip contradicts values of {name}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [(["show", "a.png"], []), (["sweep"], ["sweep"]), (["--help"], ["sweep", "other"]), ([], ["sweep", "other"])],
)
def test_qlip_loads_other_packages_only_for_their_commands_and_its_help(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], loaded: list[str]
) -> None:
    seen: list[str] = []

    def entry(name: str) -> Any:
        def load() -> Any:
            seen.append(name)
            return lambda commands: commands.add_parser(name).set_defaults(run=lambda _: 0)

        return SimpleNamespace(name=name, load=load)

    monkeypatch.setattr(cli, "entry_points", lambda group: [entry("sweep"), entry("other")])
    with contextlib.suppress(SystemExit):
        cli.main(arguments)
    assert seen == loaded
