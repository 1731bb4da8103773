"""scripts/v1_5/eval: what ends a script before or after answering, and what it says then."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.llava.eval.files import write_rows
from tests.scripts.eval_scripts import PICTURE, SCRIPTS, Run, parquet, picture, pope, score, vstar


def test_a_question_without_an_answer_ends_the_script_and_the_others_are_kept(run: Run, tmp_path: Path) -> None:
    data = pope(tmp_path)
    (data / "val2014" / "1.png").write_bytes(PICTURE[: len(PICTURE) // 2])
    done = run("pope", check=1)
    assert "not all questions were answered; the finished ones are kept, start it again" in done.stderr
    assert len((data / "answers" / "llava-demo" / "1_0.jsonl").read_text().splitlines()) == 2
    assert not (data / "scores").exists()
    picture(data / "val2014" / "1.png")
    run("pope")
    assert score(data / "scores" / "llava-demo.json")["mean"]["accuracy"] == 100.0


def test_answers_of_another_program_are_not_replaced(run: Run, tmp_path: Path) -> None:
    """LLaVA's eval.zip has its own answers under the same names."""
    data = pope(tmp_path)
    theirs = data / "answers" / "llava-demo.jsonl"
    theirs.parent.mkdir()
    theirs.write_text('{"question_id": 0, "prompt": "?", "text": "yes", "answer_id": "x", "metadata": {}}\n')
    before = theirs.read_bytes()
    error = run("pope", check=2).stderr
    assert f"{theirs} has answers of another program, and stays as it is; give the run another CKPT=NAME" in error
    assert theirs.read_bytes() == before
    run("pope", CKPT="mine")
    run("pope", CKPT="mine")
    assert (data / "scores" / "mine.json").is_file()


def test_other_settings_under_one_name_are_told_how_to_get_another(run: Run, tmp_path: Path) -> None:
    pope(tmp_path)
    run("pope", "--limit", "1", CKPT="one")
    error = run("pope", "--qlip", "--alpha", "0.5", check=2, CKPT="one").stderr
    assert "pope.sh: CKPT=NAME, here one, names another run and so other files of answers" in error


def test_help_says_what_a_script_does_and_reads(run: Run, tmp_path: Path) -> None:
    text = run("pope", "--help").stdout
    assert text.startswith("POPE") and "CUDA_VISIBLE_DEVICES=0,1" in text and "SCORE_FILE" in text
    assert list(tmp_path.iterdir()) == []


NEEDED = {
    "cvbench": "cv-bench",
    "gqa": "gqa/llava_gqa_testdev_balanced.jsonl",
    "llavabench": "llava-bench-in-the-wild/questions.jsonl",
    "mmbench": "mmbench/mmbench_dev_20230712.tsv",
    "mmbench_cn": "mmbench_cn/mmbench_dev_cn_20231003.tsv",
    "mme": "MME/llava_mme.jsonl",
    "mmvet": "mm-vet/llava-mm-vet.jsonl",
    "pope": "pope/llava_pope_test.jsonl",
    "qbench": "qbench/llvisionqa_dev.json",
    "qbench_zh": "qbench/质衡-问答-验证集.json",
    "realworldqa": "realworldqa",
    "seed": "seed_bench/llava-seed-bench.jsonl",
    "sqa": "scienceqa/llava_test_CQM-A.json",
    "textvqa": "textvqa/llava_textvqa_val_v051_ocr.jsonl",
    "vizwiz": "vizwiz/llava_test.jsonl",
    "vqav2": "vqav2/llava_vqav2_mscoco_test-dev2015.jsonl",
    "vstar": "vstar/test_questions.jsonl",
}


def test_every_script_is_tried() -> None:
    assert sorted(NEEDED) == sorted(path.stem for path in SCRIPTS.glob("*.sh") if path.stem != "common")


@pytest.mark.parametrize(("name", "path"), NEEDED.items())
def test_missing_data_is_named_with_what_to_get(run: Run, tmp_path: Path, name: str, path: str) -> None:
    lines = run(name, check=3).stderr.splitlines()
    assert lines[0].endswith(f".sh: {tmp_path / path} is missing")
    assert len(lines) % 2 == 0
    for missing, get in zip(lines[::2], lines[1::2], strict=True):
        assert missing.endswith(" is missing")
        assert get.startswith("  get ")
        assert "https://" in get or "http://" in get or "hf download" in get


def test_only_what_is_missing_is_named(run: Run, tmp_path: Path) -> None:
    (pope(tmp_path) / "llava_pope_test.jsonl").unlink()
    (line, _) = run("pope", check=3).stderr.splitlines()
    assert line == f"pope.sh: {tmp_path / 'pope' / 'llava_pope_test.jsonl'} is missing"


def test_a_missing_picture_ends_the_script_before_anything_is_answered(run: Run, tmp_path: Path) -> None:
    data = pope(tmp_path)
    (data / "val2014" / "1.png").unlink()
    (line,) = run("pope", check=2).stderr.splitlines()
    assert line.startswith("model_vqa_loader: error: 1 of 3 images are missing, for example ")
    assert list((data / "answers").rglob("*.jsonl")) == []


def test_labels_that_do_not_fit_end_the_script_before_anything_is_answered(run: Run, tmp_path: Path) -> None:
    data = pope(tmp_path)
    row = {"image": "0.png", "text": "Is there a green cross in the image?", "label": "no"}
    write_rows(data / "coco" / "coco_pope_random.json", [row])
    (line,) = run("pope", check=2).stderr.splitlines()
    assert "lacks 1 of the 1 random questions, for example 'Is there a green cross in the image?' about 0.png" in line
    assert not (data / "answers").exists()


def test_every_script_checks_its_labels_before_it_answers() -> None:
    common = (SCRIPTS / "common.sh").read_text()
    assert re.search(r"^run_benchmark\(\) \{\n    check_labels\n    ask ", common, re.MULTILINE)
    for path in SCRIPTS.glob("*.sh"):
        if path.stem not in ("common", "mmbench_cn", "qbench_zh"):  # these run mmbench.sh and qbench.sh
            whole, single = r"^run_benchmark$", r"^([^\n]+\|\| )?check(_labels$|\b[^\n]+--check( \S+)?$)\nask "
            assert re.search(f"{whole}|{single}", path.read_text(), re.MULTILINE), path.name


def test_a_limit_answers_a_few_questions_without_a_score_and_the_whole_run_continues(run: Run, tmp_path: Path) -> None:
    data = pope(tmp_path)
    done = run("pope", "--limit=2")
    assert "pope.sh: no score over a part of the benchmark (--limit)" in done.stdout
    assert len((data / "answers" / "llava-demo.limit.jsonl").read_text().splitlines()) == 2
    assert not (data / "scores").exists()
    first = (data / "answers" / "llava-demo.limit.jsonl").read_bytes()
    run("pope")
    whole = (data / "answers" / "llava-demo.jsonl").read_bytes()
    assert whole.startswith(first)
    assert score(data / "scores" / "llava-demo.json")["random"]["questions"] == 3
    run("pope", "--limit=3", "--limit", "1")  # all are answered, and one is asked for
    assert (data / "answers" / "llava-demo.limit.jsonl").read_bytes() == first.split(b"\n")[0] + b"\n"
    run("pope", "--limit", "1", CUDA_VISIBLE_DEVICES="0,1")  # a trial on other machines leaves the whole as it is
    assert (data / "answers" / "llava-demo.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("liuhaotian/llava-v1.5-7b", "llava-v1.5-7b"),
        ("runs/a/checkpoint-500/", "a_checkpoint-500"),
        ("checkpoint-500", "checkpoint-500"),
        ("/checkpoint-500", "checkpoint-500"),
        (".", "here"),
        ("sub/..", "here"),
    ],
)
def test_a_run_is_named_after_its_model(tmp_path: Path, path: str, name: str) -> None:
    """As LLaVA names models: of a training checkpoint, its number alone would be every run's."""
    (here := tmp_path / "here" / "sub").mkdir(parents=True)
    command = f'source "{SCRIPTS / "common.sh"}"; model_name "$0"'
    done = subprocess.run(
        ["bash", "-c", command, path],
        cwd=here.parent,
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == name


@pytest.mark.parametrize(
    ("protocol", "flags"),
    [
        ("letter", ("--lim", "2")),
        ("likelihood", ("--lim=2",)),
    ],
)
def test_an_abbreviated_flag_is_refused(run: Run, tmp_path: Path, flags: tuple[str, ...], protocol: str) -> None:
    """The scripts read flags by their whole names, for what is scored and for the names of files."""
    vstar(tmp_path)
    error = run("vstar", *flags, check=2, PROTOCOL=protocol).stderr
    assert f"error: unrecognized arguments: {flags[0].partition('=')[0]}" in error
    assert not list((tmp_path / "vstar").glob("answers/**/*.jsonl"))


@pytest.mark.parametrize("flag", ["--answers-file=a.jsonl", "--question-file", "--num-chunks", "--chunk-idx"])
def test_a_flag_that_a_script_sets_is_refused_at_once(run: Run, tmp_path: Path, flag: str) -> None:
    error = run("vstar", flag, "2", check=2).stderr
    assert f"vstar.sh: {flag.partition('=')[0]} is set by this script; CKPT names the run" in error


def test_popes_label_files_are_named_by_the_commit_that_fits(run: Run, tmp_path: Path) -> None:
    assert "https://github.com/AoiDragon/POPE/tree/e3e3926/output/coco" in run("pope", check=3).stderr


def test_a_hubs_file_must_have_its_columns_and_pictures(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "realworldqa"
    parquet(data / "data" / "a.parquet", [{"image": {"bytes": b"text", "path": ""}, "question": "?", "answer": "A"}])
    assert (
        "a.parquet: row 0: image is bytes that begin with b'text'; it must be a JPEG, PNG or WebP file"
        in run("realworldqa", check=2).stderr
    )
    (data / "data" / "._a.parquet").write_bytes(b"Mac")  # what macOS adds is passed over
    (data / "data" / "b.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00")
    parquet(data / "data" / "a.parquet", [{"image": {"bytes": PICTURE, "path": ""}, "question": "?", "answer": "A"}])
    assert "b.parquet is not a Parquet file: git-lfs has left a pointer" in run("realworldqa", check=2).stderr
    (data / "data" / "b.parquet").unlink()
    parquet(data / "data" / "a.parquet", [{"image": {"path": "a.jpg"}, "question": "?", "answer": "A"}])
    assert "a.parquet: row 0: image is null; it must be a JPEG, PNG or WebP file" in run("realworldqa", check=2).stderr
    (data / "data" / "a.parquet").rename(data / "data" / "test-00000-of-00002.parquet")
    error = run("realworldqa", check=2).stderr  # a download that was stopped
    assert "lacks 1 of 2 files, for example test-00001-of-00002.parquet; download the rest" in error
    (data / "data" / "test-00000-of-00002.parquet").rename(data / "data" / "a.txt")
    assert "there is no .parquet file" in run("realworldqa", check=2).stderr


def test_a_hubs_file_that_is_damaged_inside_is_named(run: Run, tmp_path: Path) -> None:
    """Its footer, which is read first, is whole."""
    file = tmp_path / "realworldqa" / "data" / "a.parquet"
    row = {"image": {"bytes": PICTURE}, "question": "How many are there?", "answer": "3"}
    parquet(file, [row] * 20)
    content = bytearray(file.read_bytes())
    content[4:400] = bytes(396)
    file.write_bytes(content)
    said = run("realworldqa", check=2).stderr
    assert f"{file.relative_to(tmp_path)} is damaged after row 0: " in said and "; download it again" in said
