"""A sweep measures what asking one by one measures, writes a line per cell, and continues where it was stopped."""

from __future__ import annotations

import json
import os
import re
import signal
from hashlib import sha256
from importlib.metadata import EntryPoint
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava.eval.run.inputs.questions import read_lines
from llava.eval.sweep import command, measure
from llava.model.builder import load_pretrained_model
from llava.serve.engine import ChatEngine
from llava.serve.engine.vision import VisionFrontend
from llava.utils import demo_model_path
from playground import scenes
from qlip import CoordinateMLP, QLIPConfig, cli
from tests.interpreter import fork_main
from tests.llava.checkpoints import make_llava_checkpoint

Record = dict[str, Any]
GRID = ("--alpha", "0.4", "inf", "--max-tokens", "72", "none")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes with every third of their questions and answers, in LLaVA's formats."""
    folder = tmp_path_factory.mktemp("material")
    assert scenes.main(["--out", str(folder), "--n", "2", "--preset", "detail", "--size", "224"]) == 0
    for file in (folder / "questions.jsonl", folder / "answers.jsonl"):
        file.write_text("".join(file.read_text().splitlines(keepends=True)[::3]))
    return folder


def flags(material: Path, out: Path, *more: str) -> list[str]:
    files = {"question-file": "questions.jsonl", "answers-file": "answers.jsonl", "image-folder": "images"}
    given = [text for name, file in files.items() for text in (f"--{name}", str(material / file))]
    return [*given, "--out", str(out), "--device", "cpu", *more]


def read(out: Path) -> list[Record]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def bare(records: list[Record]) -> list[Record]:
    """Records without what differs from run to run."""
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


@pytest.fixture(scope="module")
def finished(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished sweep: CLIP and 2 x 2 cells on five questions about two pictures, and its figures."""
    out = tmp_path_factory.mktemp("finished")
    assert command.main(flags(material, out, *GRID, "--limit", "5")) == 0
    return out


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "load_engine", lambda _: pytest.fail("no model may be loaded"))


def test_a_line_says_what_was_measured_on_what(material: Path, finished: Path) -> None:
    records = read(finished)
    own = json.loads((demo_model_path() / "config.json").read_text())["qlip"]
    assert [record["clip"] for record in records] == [True, False, False, False, False]
    assert records[0]["settings"] is None
    grid = [{"alpha": alpha, "max_tokens": tokens} for alpha in (0.4, "inf") for tokens in (72, None)]
    assert [record["settings"] for record in records[1:]] == [
        QLIPConfig.from_dict(own | cell).to_dict() for cell in grid
    ]
    for record in records:
        assert record["task"]["model"] == str(demo_model_path().resolve())
        assert record["task"]["questions_sha256"] == sha256((material / "questions.jsonl").read_bytes()).hexdigest()
        assert record["task"]["limit"] == record["questions"] == record["accuracy"]["count"] == 5
        assert record["pictures"] == 2
        assert record["seconds"] > 0
        assert record["versions"]["torch"] == torch.__version__
    assert {"accuracy.svg", "tokens.svg"} <= {file.name for file in finished.iterdir()}


def test_a_cell_is_what_asking_one_question_at_a_time_gives(material: Path, finished: Path) -> None:
    questions = read_lines(material / "questions.jsonl", material / "images", material / "answers.jsonl")[:5]
    for record in (read(finished)[i] for i in (0, 1, 4)):
        settings = False if record["clip"] else QLIPConfig.from_dict(record["settings"])
        engine = ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu", qlip=settings))
        pictures = {asked.image: Image.open(str(asked.image)) for asked in questions}
        right = [engine.ask(asked.text, [pictures[asked.image]]).lower() == asked.answer for asked in questions]
        assert record["accuracy"]["mean"] == pytest.approx(mean(right))
        for name, estimate in record["categories"].items():
            chosen = [correct for correct, asked in zip(right, questions, strict=True) if asked.category == name]
            assert estimate["mean"] == pytest.approx(mean(chosen))
            assert estimate["count"] == len(chosen)
        tower = engine.model.get_vision_tower()
        counted = [tower.count_tokens(engine.prepare_images([picture])[0]) for picture in pictures.values()]
        assert record["tokens"] == mean(counted)
        assert record["uniform_tokens"] == (8 * 8 if record["clip"] else 16 * 16)  # 112 and 224 px in cells of 14


def test_intervals_are_those_of_a_bootstrap_over_pictures() -> None:
    """Against drawing pictures one by one: answers about one picture are drawn together."""
    chance = np.random.default_rng(0)
    origin = [(Path(f"{chance.integers(30)}.png"), "count" if i % 3 else "colour") for i in range(240)]
    luck = chance.random(30)
    right = [bool(chance.random() < luck[int(path.stem)]) for path, _ in origin]
    measured = measure.scores(right, origin)
    rng = np.random.default_rng(1)
    for categories, estimate in [
        (("colour", "count"), measured["accuracy"]),
        (("colour",), measured["categories"]["colour"]),
        (("count",), measured["categories"]["count"]),
    ]:
        by_picture: dict[Path, list[bool]] = {}
        for correct, (path, category) in zip(right, origin, strict=True):
            if category in categories:
                by_picture.setdefault(path, []).append(correct)
        groups = list(by_picture.values())
        draws = [[groups[i] for i in rng.integers(len(groups), size=len(groups))] for _ in range(1500)]
        low, high = np.quantile([mean(sum(draw, [])) for draw in draws], (0.025, 0.975))
        assert (estimate["low"], estimate["high"]) == pytest.approx((low, high), abs=0.01)


def test_a_picture_is_encoded_once_a_cell_and_few_are_held(
    material: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = VisionFrontend.encode

    monkeypatch.setattr(
        VisionFrontend, "encode", lambda vision, images: encoded.append(len(images)) or encode(vision, images)
    )
    monkeypatch.setattr(measure, "IMAGES_AT_ONCE", 1)
    assert command.main(flags(material, tmp_path, *GRID, "--limit", "5", "--batch-tokens", "1")) == 0
    assert encoded == [1] * (5 * 2)
    assert bare(read(tmp_path)) == bare(read(finished))  # neither chunks nor batches change a result


def killed_main(argv: list[str]) -> int:
    """A sweep that kills its process right after the second cell is on the disk."""
    sync, calls = os.fsync, []

    def fsync(file: int) -> None:
        sync(file)
        calls.append(file)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    return command.main(argv)


def test_a_killed_sweep_continues_and_has_each_cell_once(material: Path, finished: Path, tmp_path: Path) -> None:
    """SIGKILL right after the second cell; and half a line, as a kill during a write would leave it."""
    arguments = flags(material, tmp_path, *GRID, "--limit", "5")
    process = fork_main(killed_main, *arguments)
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert len(read(tmp_path)) == 2
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"task": {"model": "')
    assert command.main(arguments) == 0
    assert bare(read(tmp_path)) == bare(read(finished))


@pytest.mark.usefixtures("no_model")
def test_a_finished_sweep_only_reports(material: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "results.jsonl").read_bytes()
    assert command.main(flags(material, finished, *GRID, "--limit", "5")) == 0
    assert (finished / "results.jsonl").read_bytes() == before
    assert len(capsys.readouterr().out.splitlines()) == 2 + 5


@pytest.mark.parametrize("more", [("--limit", "4"), ("--limit", "5", "--max-new-tokens", "3")])
def test_results_of_another_task_do_not_count(
    material: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    old = (finished / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(old)
    assert command.main(flags(material, tmp_path, "--no-qlip", *more)) == 0
    assert (tmp_path / "results.jsonl").read_bytes().startswith(old)
    assert len(read(tmp_path)) == 5 + 1
    assert len(capsys.readouterr().out.splitlines()) == 2 + 1


@pytest.mark.usefixtures("no_model")
def test_results_of_before_a_setting_was_there_count_as_its_default(
    material: Path, finished: Path, tmp_path: Path
) -> None:
    records = read(finished)
    for record in records[1:]:
        del record["settings"]["max_cells"]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert command.main(flags(material, tmp_path, *GRID, "--limit", "5")) == 0


def test_a_broken_picture_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "broken.png").write_bytes(b"no picture")
    line = {"question_id": 1, "image": "broken.png", "text": "What?"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(line))
    (tmp_path / "answers.jsonl").write_text(json.dumps({"question_id": 1, "text": "red"}))
    assert command.main(flags(tmp_path, tmp_path / "out", "--no-clip")) == 2
    assert "broken.png: not a readable image" in capsys.readouterr().err


def test_a_cell_beyond_the_models_context_is_skipped_and_the_others_measured(
    material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--alpha", "0", "--max-tokens", "none", "--image-size", "448", "112"]
    more = ["--limit", "1", "--no-clip", "--max-new-tokens", "1100"]  # of the context's 2048
    assert command.main(flags(material, tmp_path, *sizes, *more)) == 1
    assert [record["settings"]["image_size"] for record in read(tmp_path)] == [112]
    captured = capsys.readouterr()
    assert "image_size=448: skipped: " in captured.err
    assert "1024 positions of images" in captured.err
    assert "| QLIP |" in captured.out


def test_a_cell_beyond_the_memory_is_skipped_and_tried_again_next_time(
    material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = flags(material, tmp_path, "--alpha", "0.4", "inf", "--limit", "1", "--max-new-tokens", "1")
    with monkeypatch.context() as patch:
        outcomes = iter([torch.OutOfMemoryError("no memory")])

        def fail_once(answerer: Any, asked: Any, real: Any = measure.measure) -> Record:
            for error in outcomes:
                raise error
            return real(answerer, asked)

        patch.setattr(measure, "measure", fail_once)
        assert command.main(arguments) == 1
    assert [record["clip"] for record in read(tmp_path)] == [False, False]
    assert command.main(arguments) == 0
    assert [record["clip"] for record in read(tmp_path)] == [False, False, True]


def test_a_checkpoint_without_settings_takes_the_defaults(material: Path, tmp_path: Path) -> None:
    checkpoint = make_llava_checkpoint(tmp_path / "llava")
    more = ["--model-path", str(checkpoint), "--set", "size_bias=0,0.5", "--limit", "1", "--max-new-tokens", "1"]
    assert command.main(flags(material, tmp_path / "out", *more, "--no-clip", "--alpha", "inf")) == 0
    expected = [QLIPConfig(alpha=float("inf"), size_bias=bias).to_dict() for bias in (0.0, 0.5)]
    assert [record["settings"] for record in read(tmp_path / "out")] == expected


def test_every_cell_sees_by_its_own_settings_as_if_loaded_with_them(tmp_path: Path) -> None:
    """Two priors in turn, and from one criterion to another and back."""
    for seed in (0, 1):
        torch.manual_seed(seed)
        CoordinateMLP(160, hidden=16, depth=2).save(tmp_path / f"{seed}.safetensors")
    common = {"max_tokens": 72, "interpolation": "mlp", "mlp_residual": False}
    cells = [
        QLIPConfig(**common, mlp=str(tmp_path / "0.safetensors")),
        QLIPConfig(**common, mlp=str(tmp_path / "1.safetensors"), criterion="variance"),
        QLIPConfig(max_tokens=80, thumbnail=True),
        QLIPConfig(**common, mlp=str(tmp_path / "0.safetensors")),
    ]
    picture = [Image.effect_noise((224, 336), 40).convert("RGB")]

    def features(engine: ChatEngine) -> torch.Tensor:
        with torch.inference_mode():
            return engine.model.encode_tokens(engine.prepare_images(picture))[0].features

    def load(settings: Any) -> ChatEngine:
        return ChatEngine(*load_pretrained_model(demo_model_path(), device="cpu", qlip=settings))

    engine = load(True)
    for cell in cells:
        engine.model.get_vision_tower().settings = cell
        torch.testing.assert_close(features(engine), features(load(cell)))


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points of pyproject.toml, whether or not this version of it is installed."""
    project = (Path(__file__).parents[4] / "pyproject.toml").read_text()
    table = project.split(f'[project.entry-points."{cli.COMMANDS}"]\n')[1].split("\n\n")[0]
    pairs = [line.replace('"', "").split(" = ") for line in table.splitlines()]
    monkeypatch.setattr(cli, "entry_points", lambda group: [EntryPoint(*pair, group=group) for pair in pairs])


@pytest.mark.usefixtures("declared")
def test_the_command_is_one_of_qlips(material: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    assert re.search(r"^ +sweep +accuracy over settings", capsys.readouterr().out, re.MULTILINE)
    assert cli.main(["sweep", *flags(material, tmp_path, "--no-qlip", "--limit", "1")]) == 0
    assert len(read(tmp_path)) == 1
    assert cli.main(["sweep", *flags(material, tmp_path, "--alpha", "x")]) == 2
    assert capsys.readouterr().err.endswith("qlip sweep: error: alpha is 'x'; it must be a number\n")
