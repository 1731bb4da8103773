"""scripts/v1_5/eval: each benchmark from the data's layout to its score, with the embedded model and a few pictures.

Questions that the embedded model understands it answers rightly. Where an instruction goes with them, which it does not
understand, no option can be read from its answer, and only the number of questions is known beforehand.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from tests.interpreter import start
from tests.llava.eval.files import read_rows, write_json, write_rows
from tests.llava.eval.scoring import TASKS, problem, seed_question
from tests.scripts.eval_scripts import (
    COLOUR,
    COUNT,
    LISTED,
    NO,
    PICTURE,
    RIGHT,
    YES,
    Run,
    parquet,
    picture,
    pope,
    questions,
    score,
    vstar,
)


def test_pope(run: Run, tmp_path: Path) -> None:
    data = pope(tmp_path)
    done = run("pope")
    assert "random" in done.stdout
    assert score(data / "scores" / "llava-demo.json")["random"] == {
        "accuracy": 100.0,
        "precision": 100.0,
        "recall": 100.0,
        "F1": 100.0,
        "yes": pytest.approx(200 / 3),
        "questions": 3,
    }


def test_each_gpu_answers_a_chunk_and_quadtree_flags_reach_the_model(run: Run, tmp_path: Path) -> None:
    """Each GPU in its own process; more are named than there are here, which does not matter on the CPU."""
    data = pope(tmp_path)
    run("pope")
    (tmp_path / "processes").mkdir()
    with start(tmp_path / "processes", processes=True) as client:
        run("pope", "--max-tokens", "70", "--device=cpu", PYTHON=client, CUDA_VISIBLE_DEVICES="0,1")
    name = "llava-demo_max-tokens-70"
    chunks = [data / "answers" / name / f"2_{number}.jsonl" for number in range(2)]
    merged = (data / "answers" / f"{name}.jsonl").read_bytes()
    assert b"".join(chunk.read_bytes() for chunk in chunks) == merged
    rows = [json.loads(line) for line in merged.splitlines()]
    assert [row["question_id"] for row in rows] == [0, 1, 2]
    assert {row["metadata"]["max_tokens"] for row in rows} == {70}
    assert max(row["metadata"]["visual_tokens"] for row in rows) <= 70
    single = [json.loads(line) for line in (data / "answers" / "llava-demo.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [row["text"] for row in single] == ["yes", "no", "yes"]


def test_textvqa(run: Run, tmp_path: Path) -> None:
    """Two questions have one id, as in LLaVA's file, which names them by their picture."""
    data = tmp_path / "textvqa"
    name = picture(data / "train_images" / "p.png")
    asked = (COLOUR, COUNT)
    write_rows(
        data / "llava_textvqa_val_v051_ocr.jsonl", [{"question_id": "p", "image": name, "text": t} for t in asked]
    )
    annotations = [{"image_id": "p", "question": text, "answers": [RIGHT[text]] * 10} for text in asked]
    write_json(data / "TextVQA_0.5.1_val.json", {"data": annotations})
    run("textvqa")
    assert score(data / "scores" / "llava-demo.json") == {"all": {"accuracy": 100.0, "questions": 2}}


def test_mme(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "MME"
    rows = []
    for task in TASKS:
        folder = data / "MME_Benchmark_release_version" / task
        picture(folder / "0.png")
        (folder / "0.txt").write_text(f"{YES} Please answer yes or no.\tYes\n{NO} Please answer yes or no.\tNo\n")
        name = f"{task}/0.png"
        rows += [{"question_id": name, "image": name, "text": text, "category": task} for text in (YES, NO)]
    write_rows(data / "llava_mme.jsonl", rows)
    run("mme")
    rows = score(data / "scores" / "llava-demo.json")
    assert (rows["perception"]["score"], rows["cognition"]["score"]) == (2000.0, 800.0)


def test_gqa(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "gqa"
    rows = questions(data / "llava_gqa_testdev_balanced.jsonl", data / "data" / "images", YES, COLOUR)
    types = [{"structural": "verify", "semantic": "obj"}, {"structural": "query", "semantic": "attr"}]
    truth = {
        str(row["question_id"]): {"answer": RIGHT[row["text"]], "types": kind}
        for row, kind in zip(rows, types, strict=True)
    }
    write_json(data / "data" / "testdev_balanced_questions.json", truth)
    run("gqa")
    rows = score(data / "scores" / "llava-demo.json")
    assert {name: rows[name]["accuracy"] for name in ("all", "binary", "open")} == dict.fromkeys(
        ("all", "binary", "open"), 100.0
    )
    predictions = json.loads((data / "data" / "testdev_balanced_predictions.json").read_text())
    assert predictions == [{"questionId": "0", "prediction": "yes"}, {"questionId": "1", "prediction": "purple"}]


def test_vqav2(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "vqav2"
    rows = questions(data / "llava_vqav2_mscoco_test-dev2015.jsonl", data / "test2015", COUNT)
    write_rows(data / "llava_vqav2_mscoco_test2015.jsonl", [*rows, {"question_id": 9}])
    for split, other in ({}, ""), ({"SPLIT": "llava_vqav2_mscoco_test2015"}, "3"):
        if split:
            questions(data / "llava_vqav2_mscoco_test2015.jsonl", data / "test2015", COUNT, COUNT)
        run("vqav2", **split)
        path = data / "answers_upload" / split.get("SPLIT", "llava_vqav2_mscoco_test-dev2015") / "llava-demo.json"
        assert json.loads(path.read_text())[0] == {"question_id": 0, "answer": "3"}
        assert [row["answer"] for row in json.loads(path.read_text())] == ["3", other]


def test_vizwiz(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "vizwiz"
    questions(data / "llava_test.jsonl", data / "test", COLOUR)
    run("vizwiz", CKPT="mine")
    path = data / "answers_upload" / "mine.json"
    assert json.loads(path.read_text()) == [{"image": "0.png", "answer": "purple"}]


def test_seed(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "seed_bench"
    picture(data / "SEED-Bench-image" / "0.png")
    row = {"question_id": "7_0", "image": "SEED-Bench-image/0.png", "text": COLOUR}
    write_rows(data / "llava-seed-bench.jsonl", [row])
    question = seed_question("7_0", "B", "image", 1) | {"choice_b": "purple"}
    write_json(data / "SEED-Bench.json", {"questions": [question], "question_type": {"Colour": 1}})
    run("seed")
    assert score(data / "scores" / "llava-demo.json")["image"]["accuracy"] == 100.0
    upload = json.loads((data / "answers_upload" / "llava-demo.jsonl").read_text())
    assert upload == {"question_id": "7_0", "prediction": "B"}


def test_science_qa(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "scienceqa"
    picture(data / "images" / "test" / "1" / "image.png")
    asked = {"id": "1", "image": "1/image.png", "conversations": [{"from": "human", "value": f"<image>\n{LISTED}"}]}
    write_json(
        data / "llava_test_CQM-A.json", [asked, {"id": "2", "conversations": [{"from": "human", "value": COUNT}]}]
    )
    write_json(data / "problems.json", {"1": problem("natural", 1, 1, image="image.png"), "2": problem("social", 9, 0)})
    write_json(data / "pid_splits.json", {"test": ["1", "2"]})
    run("sqa")
    rows = score(data / "scores" / "llava-demo.json")
    assert (rows["all"]["questions"], rows["IMG"]["questions"]) == (2, 1)
    assert json.loads((data / "answers" / "llava-demo_result.json").read_text())["count"] == 2


def mmbench(folder: Path, split: str) -> tuple[Path, str]:
    """The benchmark's folder with a table of one question, and its text."""
    folder.mkdir()
    header = "index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage\n"
    row = f"4\t{COLOUR}\t\tred\tpurple\t\t\tB\tcolour\t{base64.b64encode(PICTURE).decode()}\n"
    (folder / f"{split}.tsv").write_text(header + row)
    return folder, header + row


def test_mmbench(run: Run, tmp_path: Path) -> None:
    split = "mmbench_dev_20230712"
    data, table = mmbench(tmp_path / "mmbench", split)
    run("mmbench", "--all-rounds")
    rows = score(data / "scores" / split / "llava-demo_all-rounds.json")
    assert rows["first order"]["questions"] == rows["CircularEval"]["questions"] == 1
    assert (data / "answers_upload" / split / "llava-demo_all-rounds.xlsx").is_file()
    (data / "MMBench_TEST_EN.tsv").write_text(table.replace("answer\t", "").replace("\tB\tcolour", "\tcolour"))
    assert "submit the file" in run("mmbench", SPLIT="MMBench_TEST_EN", CKPT="owner/model").stdout
    assert (data / "answers_upload" / "MMBench_TEST_EN" / "owner" / "model.xlsx").is_file()


def test_mmbench_cn_is_mmbench_with_data_of_its_own(run: Run, tmp_path: Path) -> None:
    split = "mmbench_dev_cn_20231003"
    data, _ = mmbench(tmp_path / "mmbench_cn", split)
    run("mmbench_cn")
    assert score(data / "scores" / split / "llava-demo.json")["first order"]["questions"] == 1


def test_vstar_in_both_protocols(run: Run, tmp_path: Path) -> None:
    data = vstar(tmp_path)
    run("vstar")
    assert score(data / "scores" / "llava-demo.json")["overall"]["questions"] == 1
    run("vstar", "--qlip", PROTOCOL="likelihood")
    assert score(data / "scores" / "llava-demo_qlip_likelihood.json")["overall"]["accuracy"] == 100.0
    assert "PROTOCOL is guess; it must be letter or likelihood" in run("vstar", PROTOCOL="guess", check=2).stderr


def test_cvbench_from_its_hubs_files(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "cv-bench"
    image = {"bytes": PICTURE, "path": None}
    row = {"type": "2D", "task": "Count", "image": image, "prompt": LISTED, "answer": "(B)"}
    sources = [("2D", "ADE20K"), ("2D", "COCO"), ("3D", "Omni3D")]
    rows = [row | {"type": kind, "source": source} for kind, source in sources]
    parquet(data / "test" / "a.parquet", rows[:2])
    error = run("cvbench", check=2).stderr
    assert "has no questions whose source is Omni3D: a part of CV-Bench is missing; download the rest" in error
    parquet(data / "test" / "a.parquet", rows)
    run("cvbench")
    assert {"overall", "2D", "3D", "ADE20K", "COCO", "Omni3D"} <= set(score(data / "scores" / "llava-demo.json"))
    asked = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()]
    assert asked[0]["text"] == f"{LISTED}\nAnswer with the option's letter from the given choices directly."
    assert (data / asked[2]["image"]).read_bytes() == PICTURE
    more = tmp_path / "elsewhere"
    parquet(more / "b.parquet", rows[:1])
    os.utime(more / "b.parquet", (0, 0))  # older than the questions, as a file is that is moved or unpacked
    (data / "more").symlink_to(more, target_is_directory=True)
    run("cvbench", CKPT="again")
    assert score(data / "scores" / "again.json")["all questions"]["questions"] == 4


def test_realworldqa_from_its_hubs_files(run: Run, tmp_path: Path) -> None:
    data = tmp_path / "realworldqa"
    image = {"bytes": PICTURE, "path": "0.webp"}
    parquet(data / "data" / "a.parquet", [{"image": image, "question": t, "answer": RIGHT[t]} for t in (COLOUR, COUNT)])
    run("realworldqa")
    assert score(data / "scores" / "llava-demo.json")["open"] == {"accuracy": 100.0, "questions": 2}


@pytest.mark.parametrize(
    ("script", "flags", "asked"),
    [
        ("qbench", [], "llvisionqa_dev"),
        ("qbench", ["test"], "llvisionqa_test"),
        ("qbench_zh", [], "质衡-问答-验证集"),
        ("qbench_zh", ["test"], "质衡-问答-测试集"),
    ],
)
def test_qbench(run: Run, tmp_path: Path, script: str, flags: list[str], asked: str) -> None:
    """The test sets have no right answers."""
    data, test = tmp_path / "qbench", "test" in flags
    entry = {"img_path": picture(data / "images_llvisionqa" / "1.png"), "question": COLOUR, "question_type": 1}
    entry |= {"question_concern": 1, "candidates": ["red", "purple"]} | ({} if test else {"correct_ans": "purple"})
    write_json(data / f"{asked}.json", [entry])
    done = run(script, *flags, "--max-tokens", "70")
    upload = json.loads((data / "answers_upload" / asked / "llava-demo_max-tokens-70.json").read_text())
    assert [{**row, "response": ""} for row in upload] == [{**entry, "response": ""}]
    (row,) = read_rows(data / "answers" / asked / "llava-demo_max-tokens-70.jsonl")
    assert ("在下列选项中选择一个:" in row["prompt"]) == (script == "qbench_zh")
    scored = data / "scores" / asked / "llava-demo_max-tokens-70.json"
    assert scored.exists() == (not test) == ("type 1" in done.stdout)
