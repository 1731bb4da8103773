"""scripts.paper: paper, ours and difference for each column; "not measured" where weights or data are missing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from llava.model.builder import load_pretrained_model
from llava.utils import demo_model_path
from qlip import CoordinateMLP, QLIPConfig
from scripts.paper import report
from scripts.paper.__main__ import main
from scripts.paper.runs import PAPER, make_runs, with_settings
from scripts.paper.table import COLUMNS, Column
from tests.interpreter import start
from tests.scripts.eval_scripts import PICTURE, pope, vstar

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with start(tmp_path_factory.mktemp("interpreter")) as client:
        yield client


def test_every_number_is_in_the_papers_place() -> None:
    """The rows of its table, column by column."""
    rows = {
        ("7B", "CLIP"): [42.4, None, None, 62.5, 74.4, 39.9, 64.0, 1207, 49.0],
        ("7B", "QLIP"): [53.4, 50.4, 60.5, 59.7, 79.6, 40.2, 63.5, 1241, 47.3],
        ("13B", "CLIP"): [45.0, None, None, 67.4, 82.4, 61.6, 67.8, 1390, 48.0],
        ("13B", "QLIP"): [58.6, 53.9, 65.8, 67.9, 83.6, 60.7, 67.9, 1388, 49.4],
    }
    assert {
        cell: [column.of_paper(*cell) for columns in COLUMNS.values() for column in columns] for cell in rows
    } == rows


def test_a_row_that_the_score_lacks_is_an_error_unless_it_may_be_absent() -> None:
    column = Column("POPE F1", "pope", (1.0, 2.0, 3.0, 4.0), "F1", "mean")
    assert column.of_score({"random": {"F1": 60.0}, "mean": {"F1": 50.0}}) == 50.0
    with pytest.raises(ValueError, match="the score of POPE F1 has no row mean; it has random"):
        column.of_score({"random": {"F1": 60.0}})
    assert replace(column, absent="one split").of_score({"random": {"F1": 60.0}}) is None


def test_mmbench_is_compared_by_circular_eval_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table without rotations has only the accuracy in the first order, which is higher."""
    rows = {"first order": {"accuracy": 60.0}}
    monkeypatch.setattr(report, "measure", lambda *_: rows)
    flags = ["mmbench", "--variants", "clip", "--json", str(tmp_path / "lines.json")]
    assert main(flags) == 0
    assert "| MMBench | 7B | CLIP |  | 62.5 | not measured: no rotations |  |" in capsys.readouterr().out
    lines = [report.Line(**line) for line in json.loads((tmp_path / "lines.json").read_text())]
    assert [(line.ours, line.note, line.failed) for line in lines] == [(None, "no rotations", False)] * 2
    rows["CircularEval"] = {"accuracy": 50.0}
    assert main(flags) == 0
    assert "| MMBench | 7B | CLIP |  | 62.5 | 50.0 | -12.5 |" in capsys.readouterr().out


def test_the_papers_rule_is_run_for_each_alpha_and_size() -> None:
    runs = make_runs(("paper", "clip"), (0.05, 0.1), (336, 672), None)
    assert [run.name for run in runs][:2] == ["clip", "paper-bicubic-alpha-0.05-336px"]
    assert len({run.name for run in runs}) == 5
    settings = runs[-1].qlip
    assert settings is not None
    assert (settings.alpha, settings.image_size) == (0.1, 672)
    assert settings.criterion == PAPER.criterion == "gradient"
    with pytest.raises(ValueError, match="variant is 'siglip'; allowed are clip, qlip, paper"):
        make_runs(("siglip",), (0.1,), (672,), None)


@pytest.mark.parametrize("settings", [None, QLIPConfig(alpha=0.3, max_tokens=70)])
def test_a_checkpoint_is_given_settings_without_a_copy(tmp_path: Path, settings: QLIPConfig | None) -> None:
    folder = with_settings(demo_model_path(), QLIPConfig(), tmp_path / "new")
    (folder / "pytorch_model.bin").symlink_to(demo_model_path() / "model.safetensors")  # of another checkpoint
    folder = with_settings(demo_model_path(), settings, folder)  # over an older one
    assert not (folder / "pytorch_model.bin").is_symlink()
    assert (folder / "model.safetensors").resolve() == (demo_model_path() / "model.safetensors").resolve()
    tower = load_pretrained_model(str(folder), device="cpu")[1].get_vision_tower()
    assert getattr(tower, "settings", None) == settings
    assert "qlip" in json.loads((demo_model_path() / "config.json").read_text())


def lines_of(name: str, python: Path, data: Path, *flags: str) -> list[report.Line]:
    out = data / "lines.json"
    models = [f"--model-7b={demo_model_path()}", f"--model-13b={data / 'absent'}"]
    command = [name, *models, f"--eval-dir={data}", f"--python={python}", f"--json={out}", *flags]
    assert main(command) == 0
    return [report.Line(**line) for line in json.loads(out.read_text())]


def test_a_trial_with_few_questions_has_no_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The flag reaches the scripts, which score no part of a benchmark."""
    asked = []
    monkeypatch.setattr(report, "run_script", lambda name, flags, variables: asked.append((name, flags)) or (0, []))
    flags = ["--model-7b", str(demo_model_path()), "--model-13b", str(tmp_path / "absent"), "--eval-dir", str(tmp_path)]
    assert main(["pope", "mme", "--variants", "clip", "--limit", "5", *flags, "--", "--device", "cpu"]) == 0
    assert [(name, given[2:]) for name, given in asked] == [
        ("pope", ["--device", "cpu", "--limit", "5"]),
        ("mme", ["--device", "cpu", "--limit", "5"]),
    ]
    printed = capsys.readouterr().out
    assert printed.count("not measured: --limit: the first questions are answered") == 2
    assert printed.count("not measured: no weights") == 2


def test_paper_ours_and_difference(python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The embedded model instead of the 7B one, which sees no small ring by CLIP; there is no 13B one."""
    pope(tmp_path)
    found = lines_of("pope", python, tmp_path, "--variants", "clip", "qlip", "--", "--device", "cpu")
    assert [(line.model, line.tower, line.paper, line.ours) for line in found] == [
        ("7B", "CLIP", 74.4, 0.0),
        ("7B", "QLIP", 79.6, 100.0),
        ("13B", "CLIP", 82.4, None),
        ("13B", "QLIP", 83.6, None),
    ]
    assert "no weights" in found[2].note
    printed = capsys.readouterr().out
    assert re.search(r"\| POPE F1 \| 7B \| CLIP \|  \| 74\.4 \| 0\.0 \| -74\.4 \|", printed)
    assert re.search(r"\| POPE F1 \| 13B .* \| 83\.6 \| not measured: no weights \(.*absent\) \|  \|", printed)
    towers = {}
    for name in ("clip", "qlip-defaults"):
        rows = (tmp_path / "pope" / "answers" / f"7B_llava-demo_{name}.jsonl").read_text().splitlines()
        towers[name] = {json.loads(row)["metadata"]["tower"] for row in rows}
    assert towers == {"clip": {"clip"}, "qlip-defaults": {"qlip"}}


def test_the_columns_of_vstar_come_from_one_run_by_either_protocol(python: Path, tmp_path: Path) -> None:
    vstar(tmp_path, categories=("direct_attributes", "relative_position"))
    found = lines_of("v_star", python, tmp_path, "--variants", "qlip", "--protocol", "likelihood")
    assert [(line.column, line.paper, line.ours) for line in found[:3]] == [
        ("V*", 53.4, 100.0),
        ("V* attr", 50.4, 100.0),
        ("V* rel", 60.5, 100.0),
    ]
    assert [path.name for path in (tmp_path / "vstar" / "answers").iterdir() if path.is_dir()] == [
        "7B_llava-demo_qlip-defaults_likelihood"
    ]


def test_without_data_nothing_is_measured(python: Path, tmp_path: Path) -> None:
    first = lines_of("pope", python, tmp_path, "--variants", "clip")[0]
    missing = tmp_path / "pope" / "llava_pope_test.jsonl"
    assert (first.ours, first.note) == (None, f"no data ({missing} is missing)")


def test_a_benchmark_that_fails_is_no_number_and_an_error_at_the_end(
    python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pope(tmp_path)
    (data / "val2014" / "0.png").write_bytes(PICTURE[: len(PICTURE) // 2])
    flags = [
        "pope",
        f"--model-7b={demo_model_path()}",
        f"--eval-dir={tmp_path}",
        f"--python={python}",
        "--variants=clip",
    ]
    assert main(flags) == 2
    said = capsys.readouterr()
    assert "not measured: pope.sh failed (pope.sh: not all questions were answered" in said.out
    assert "paper: error: 1 of 2 numbers are missing because a benchmark failed" in said.err


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, "has no config.json; expected a LLaVA checkpoint's folder"),
        ("{", r"config\.json:1 is not JSON"),
        ("[]", r"config\.json holds a list; it must be a dict"),
    ],
)
def test_a_damaged_checkpoint_is_no_number_and_the_next_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], config: str | None, words: str
) -> None:
    (tmp_path / "damaged").mkdir()
    if config is not None:
        (tmp_path / "damaged" / "config.json").write_text(config)

    def run_script(name: str, flags: list[str], own: dict[str, str]) -> tuple[int, list[str]]:
        Path(own["SCORE_FILE"]).write_text(json.dumps({"rows": {"mean": {"F1": 80.0}}}))
        return 0, []

    monkeypatch.setattr(report, "run_script", run_script)
    models = [f"--model-7b={tmp_path / 'damaged'}", f"--model-13b={demo_model_path()}"]
    assert main(["pope", *models, f"--eval-dir={tmp_path}", "--variants=clip"]) == 2
    said = capsys.readouterr()
    assert re.search(rf"\| POPE F1 \| 7B .* \| not measured: .*damaged.*{words}", said.out)
    assert "| POPE F1 | 13B | CLIP |  | 82.4 | 80.0 | -2.4 |" in said.out
    assert "1 of 2 numbers are missing" in said.err
    assert [path.name for path in (tmp_path / "paper").iterdir() if path.is_dir()] == ["13B_llava-demo_clip"]


def test_a_score_without_its_row_is_no_number_and_the_others_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of CV-Bench with one of its two files; each line is written at once, since a run takes days."""
    rows = {"cvbench": {"2D": {"accuracy": 50.0}}, "pope": {"mean": {"F1": 80.0}}}
    monkeypatch.setattr(report, "measure", lambda script, *arguments: rows[script])
    flags = ["--variants=clip", f"--eval-dir={tmp_path}", f"--json={tmp_path / 'lines.json'}"]
    assert main(["cv_bench", "pope", *flags]) == 2
    found = [
        (line["column"], line["ours"], line["failed"]) for line in json.loads((tmp_path / "lines.json").read_text())
    ]
    assert found == [("CV-Bench", None, True), ("POPE F1", 80.0, False)] * 2
    assert "not measured: the score of CV-Bench has no row overall; it has 2D" in capsys.readouterr().out


def test_checkpoints_and_priors_of_one_name_have_runs_of_their_own(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []
    monkeypatch.setattr(report, "run_script", lambda name, flags, own: started.append(own["CKPT"]) or (3, [": none"]))
    for prior in ("one", "two"):
        CoordinateMLP(64, hidden=8, depth=1).save(tmp_path / f"{prior}.safetensors")
        models = [f"--model-{size}={demo_model_path()}" for size in ("7b", "13b")]
        flags = [*models, f"--eval-dir={tmp_path}", "--variants=paper", f"--prior={tmp_path / prior}.safetensors"]
        assert main(["pope", *flags]) == 0
    assert len(set(started)) == 4 and all("llava-demo_paper-mlp-" in name for name in started)


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_measured_by_its_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main([name, "--model-7b=absent", "--model-13b=absent/too", "--variants", "clip"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    names = [column.name for column in COLUMNS[name]]
    assert [line.split(" | ")[:2] for line in lines] == [[f"| {n}", model] for model in ("7B", "13B") for n in names]
    assert all("not measured: no weights (absent" in line for line in lines)


def test_without_a_name_all_columns_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["--model-7b=absent", "--model-13b=absent", "--variants", "clip"]) == 0
    found = re.findall(r"^\| ([^|]+) \| 7B \|", capsys.readouterr().out, re.MULTILINE)
    assert found == [column.name for columns in COLUMNS.values() for column in columns]


def test_an_unknown_column_is_named_with_those_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["vqa"])
    assert "argument COLUMN: 'vqa' is not allowed; columns are v_star, mmbench" in capsys.readouterr().err
