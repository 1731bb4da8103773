"""The four commands that answer question files: formats, faults, settings and chunks."""

from __future__ import annotations

import base64
import json
import re
from hashlib import sha256
from pathlib import Path

import pytest

from llava.eval import model_vqa, model_vqa_loader, model_vqa_mmbench, model_vqa_science
from llava.eval.run.answers.answer_file import AnswerFile
from llava.eval.run.answers.lock import only_run
from llava.eval.run.answers.progress import Progress
from llava.eval.run.inputs import image_workers
from llava.images import load_image
from llava.serve.engine import ChatEngine
from llava.serve.engine.params import Sampling
from tests.llava.checkpoints import make_llava_checkpoint
from tests.llava.eval.files import PICTURES, TEXTS, read_rows


def test_rows_are_llavas_in_the_questions_order_and_answers_those_of_a_chat(
    folder: Path, engine: ChatEngine, whole: bytes
) -> None:
    rows = [json.loads(line) for line in whole.splitlines()]
    questions = read_rows(folder / "questions.jsonl")
    assert len(rows) == len(questions) == PICTURES * len(TEXTS)
    for row, question in zip(rows, questions, strict=True):
        assert list(row) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
        assert (row["question_id"], row["prompt"]) == (question["question_id"], question["text"])
        picture = load_image(folder / question["image"])
        assert row["text"] == engine.ask(question["text"], [picture], Sampling(0.0, max_new_tokens=128))
    assert len({row["answer_id"] for row in rows}) == len(rows)
    assert {row["model_id"] for row in rows} == {"llava-demo"}


def test_metadata_holds_all_that_an_answer_depends_on(folder: Path, engine: ChatEngine, whole: bytes) -> None:
    metadata = json.loads(whole.splitlines()[4])["metadata"]
    pixels = engine.prepare_images([load_image(folder / "1.png")])[0]
    settings = engine.model.get_vision_tower().settings
    assert metadata["image"] == "1.png"
    assert metadata["image_hash"] == f"sha256:{sha256((folder / '1.png').read_bytes()).hexdigest()[:16]}"
    assert metadata["image_size"] == [448, 448]
    assert metadata["visual_tokens"] == engine.model.get_vision_tower().count_tokens(pixels)
    assert metadata["uniform_tokens"] == 32 * 32
    assert (metadata["tower"], metadata["alpha"], metadata["max_tokens"]) == ("qlip", 0.8, 128)
    assert metadata["qlip"] == settings.to_dict()
    assert metadata["prompt_template"] == "vicuna_v1"
    assert metadata["decoding"] == {
        "temperature": 0.0, "top_p": None, "num_beams": 1, "max_new_tokens": 128, "seed": None
    }  # fmt: skip
    assert metadata["checkpoint"].startswith("sha256:")
    assert metadata["versions"]["transformers"]


def test_a_run_is_the_same_to_the_byte_whatever_its_batches_and_workers(
    flags: list[str], answers: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_workers, "MIN_PREPARE_SECONDS", 0.0)  # workers start for few images too
    assert model_vqa_loader.main([*flags, "--batch-size=5", "--batch-tokens=600", "--workers=1"]) == 0
    assert answers.read_bytes() == whole


def test_chunks_put_together_are_the_whole(flags: list[str], whole: bytes, tmp_path: Path) -> None:
    parts = []
    for index in range(3):
        answers = tmp_path / f"3_{index}.jsonl"
        chunk = ["--num-chunks=3", f"--chunk-idx={index}", f"--answers-file={answers}"]
        assert model_vqa_loader.main([*flags, *chunk]) == 0
        parts.append(answers.read_bytes())
    assert b"".join(parts) == whole
    assert all(parts)


def test_a_broken_picture_is_an_error_row_and_the_rest_is_answered(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"question_id": i, "image": name, "text": TEXTS[0]} for i, name in enumerate(("a.png", "0.png", "b.png"))]
    questions, answers = tmp_path / "q.jsonl", tmp_path / "answers.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "0.png").write_bytes((folder / "0.png").read_bytes())
    (tmp_path / "b.png").write_bytes(b"broken")
    arguments = [f"--question-file={questions}", f"--image-folder={tmp_path}", f"--answers-file={answers}"]
    assert model_vqa_loader.main([*arguments, "--skip-unreadable"]) == 1
    assert [row["question_id"] for row in read_rows(answers)] == [1]
    errors = read_rows(tmp_path / "answers.errors.jsonl")
    assert [(row["question_id"], row["error"].split(":")[0]) for row in errors] == [
        (0, "no such image file"),
        (2, "not a readable image; it is broken, or not one of PNG, JPEG, WEBP, GIF, BMP,"
            " TIFF, PPM"),
    ]  # fmt: skip
    assert "2 questions have no answer" in capsys.readouterr().err
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes((folder / "1.png").read_bytes())
    assert model_vqa_loader.main(arguments) == 0
    assert [row["question_id"] for row in read_rows(answers)] == [0, 1, 2]
    assert not (tmp_path / "answers.errors.jsonl").exists()


def test_other_settings_are_not_mixed_in_unless_the_run_starts_over(
    flags: list[str], answers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags.append("--limit=3")
    assert model_vqa_loader.main(flags) == 0
    errors = answers.with_name("answers.errors.jsonl")
    errors.write_text(json.dumps({"question_id": 1, "prompt": "?", "error": "lost", "metadata": {"index": 0}}))
    before = {file.name: file.read_bytes() for file in answers.parent.iterdir()}
    assert model_vqa_loader.main([*flags, "--alpha=0.3", "--max_new_tokens=7"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "alpha is 0.8 there and 0.3 now" in error and "--no-resume" in error
    assert {file.name: file.read_bytes() for file in answers.parent.iterdir()} == before
    assert model_vqa_loader.main([*flags, "--alpha=0.3", "--no-resume"]) == 0
    assert {row["metadata"]["alpha"] for row in read_rows(answers)} == {0.3}


def test_answers_about_other_pictures_are_not_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, answers = tmp_path / "q.jsonl", tmp_path / "a.jsonl"
    arguments = [f"--question-file={questions}", f"--image-folder={folder}", f"--answers-file={answers}"]
    codes = []
    for names in (("0.png", "1.png"), ("1.png", "0.png")):
        lines = [{"question_id": i, "image": name, "text": TEXTS[0]} for i, name in enumerate(names)]
        questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
        codes.append(model_vqa_loader.main(arguments))
    assert codes == [0, 2]
    assert "answers question 0 about the image '0.png'" in capsys.readouterr().err
    assert [row["metadata"]["image"] for row in read_rows(answers)] == ["0.png", "1.png"]


def test_a_lost_question_shows_in_the_exit_code(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append = AnswerFile.append
    monkeypatch.setattr(AnswerFile, "append", lambda file, rows: append(file, rows[1:]))
    chunk = ["--num-chunks=2", "--chunk-idx=0", "--batch-size=40", "--limit=3"]
    assert model_vqa_loader.main([*flags, *chunk, "--batch-tokens=1000000"]) == 1
    assert "questions have neither answer nor error" in capsys.readouterr().err
    monkeypatch.undo()
    assert model_vqa_loader.main([*flags, *chunk]) == 0


def test_two_runs_may_not_write_one_file(flags: list[str], answers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with only_run(answers):
        assert model_vqa_loader.main(flags) == 2
    assert "is being written by another run (process" in capsys.readouterr().err.splitlines()[-1]
    assert not answers.exists()
    assert model_vqa_loader.main([*flags, "--limit=1"]) == 0
    assert [file.name for file in answers.parent.iterdir()] == ["answers.jsonl"]


def test_progress_tells_questions_and_pictures_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """Eight questions about two pictures, in a run of more than two seconds."""
    progress = Progress(8, show=True)
    progress.bar.start_t -= 3
    for start in (0, 4):
        places = [
            {"image": f"{i // 4}.png", "visual_tokens": 30, "uniform_tokens": 40} for i in range(start, start + 4)
        ]
        progress.add([{"text": "x", "metadata": place} for place in places])
    progress.close()
    last = capsys.readouterr().err.rpartition("\r")[2]
    found = re.search(r"8/8 .* [\d.]+question/s, [\d.]+ images/s, 25% tokens saved", last)
    assert found, last
    assert progress.images == {"0.png", "1.png"}


def test_a_run_of_less_than_two_seconds_shows_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(1, show=True)
    progress.add([{"text": "x", "metadata": {"image": "0.png", "visual_tokens": 30, "uniform_tokens": 40}}])
    progress.close()
    assert capsys.readouterr().err == ""


def test_without_qlip_the_tower_is_clips(flags: list[str], answers: Path) -> None:
    assert model_vqa_loader.main([*flags, "--no-qlip", "--limit=1"]) == 0
    row = read_rows(answers)[0]["metadata"]
    assert (row["tower"], row["alpha"], row["qlip"], row["visual_tokens"]) == ("clip", None, None, 64)
    assert (row["image_size"], row["image_aspect_ratio"]) == ([112, 112], "pad")


def test_model_vqa_samples_by_default_and_repeats_itself(flags: list[str], answers: Path, tmp_path: Path) -> None:
    hot = [*flags, "--temperature=2", "--max_new_tokens=12", "--limit=6"]
    texts = []
    for name, more in (("a", ["--batch-size=3"]), ("b", []), ("c", ["--seed=1"])):
        assert model_vqa.main([*hot, *more, f"--answers-file={tmp_path / name}"]) == 0
        texts.append([row["text"] for row in read_rows(tmp_path / name)])
    assert texts[0] == texts[1] != texts[2]
    assert read_rows(tmp_path / "c")[0]["metadata"]["decoding"]["seed"] == 1
    assert model_vqa.main([*flags, "--limit=1"]) == 0
    decoding = read_rows(answers)[0]["metadata"]["decoding"]
    assert (decoding["temperature"], decoding["max_new_tokens"]) == (0.2, 1024)


def test_scienceqa_is_answered_with_and_without_pictures(folder: Path, tmp_path: Path, engine: ChatEngine) -> None:
    entries = [
        {"id": "1", "conversations": [{"value": f"<image>\n{TEXTS[0]}"}], "image": "0.png"},
        {"id": "2", "conversations": [{"value": TEXTS[0]}]},
    ]
    questions, answers = tmp_path / "q.json", tmp_path / "a.jsonl"
    questions.write_text(json.dumps(entries))
    flags = [f"--question-file={questions}", f"--image-folder={folder}", f"--answers-file={answers}"]
    assert model_vqa_science.main([*flags, "--temperature=0"]) == 0
    rows = read_rows(answers)
    assert [row["prompt"] for row in rows] == [f"<image>\n{TEXTS[0]}", TEXTS[0]]
    assert rows[0]["text"] == engine.ask(TEXTS[0], [load_image(folder / "0.png")])
    assert rows[1]["text"] == engine.ask(TEXTS[0], [])
    assert rows[1]["metadata"]["visual_tokens"] == 0


def test_mmbench_is_answered_in_all_rounds(folder: Path, tmp_path: Path, engine: ChatEngine) -> None:
    picture = base64.b64encode((folder / "0.png").read_bytes()).decode()
    table, answers = tmp_path / "q.tsv", tmp_path / "a.jsonl"
    columns = ["index", "question", "hint", "A", "B", "C", "D", "image"]
    cells = ["7", "Is there a red circle?", "", "yes", "no", "", "", picture]
    table.write_text("\t".join(columns) + "\n" + "\t".join(cells) + "\n")
    assert model_vqa_mmbench.main([f"--question-file={table}", f"--answers-file={answers}", "--all-rounds",
                                   "--temperature=0", "--single-pred-prompt"]) == 0  # fmt: skip
    rows = read_rows(answers)
    assert [(row["question_id"], row["round_id"], row["options"], row["option_char"]) for row in rows] == [
        (7, 0, ["yes", "no"], ["A", "B"]),
        (7, 1, ["no", "yes"], ["B", "A"]),
    ]
    demand = "\nAnswer with the option's letter from the given choices directly."
    image = load_image(folder / "0.png")
    assert [row["text"] for row in rows] == [engine.ask(row["prompt"] + demand, [image]) for row in rows]


def test_checkpoints_are_distinguished_by_their_content(folder: Path, tmp_path: Path) -> None:
    checkpoint = make_llava_checkpoint(tmp_path / "model")
    (tmp_path / "q.jsonl").write_text((folder / "questions.jsonl").read_text().splitlines()[0])
    flags = [f"--model-path={checkpoint}", f"--question-file={tmp_path / 'q.jsonl'}", f"--image-folder={folder}",
             f"--answers-file={tmp_path / 'a.jsonl'}", "--max_new_tokens=4"]  # fmt: skip
    assert model_vqa_loader.main(flags) == 0
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    assert model_vqa_loader.main(flags) == 2
    assert model_vqa_loader.main([*flags, "--no-resume"]) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--question-file=nowhere.jsonl"], "nowhere.jsonl"),
        (["--no-qlip", "--alpha=0.5"], "--no-qlip contradicts --alpha"),
        (["--num-chunks=2", "--chunk-idx=2"], "--chunk-idx is 2; it must be below --num-chunks, which is 2"),
    ],
)
def test_impossible_flags_are_named(
    flags: list[str], more: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model_vqa_loader.main([*flags, *more]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
