"""Questions without images, by LLaVA's command: a language model alone answers as transformers' own class does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval import model_qa
from llava.mm_utils import tokenizer_image_token
from llava.model.builder import load_pretrained_model
from tests.llava.checkpoints import TEXT, make_llava_checkpoint, write_tokenizer
from tests.llava.eval.files import write_rows

QUESTIONS = ["what is a red circle?", "How many?"]
PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: {} ASSISTANT:"
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vicuna")
    write_tokenizer(folder)
    tokenizer = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TEXT))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
        model.lm_head.weight[: 3 + 256] = 0  # whole pieces only: single bytes of random weights are not text
        model.lm_head.weight[len(tokenizer) :] = 0
    model.save_pretrained(folder)
    return folder


def ask(tmp_path: Path, *flags: str) -> list[dict]:
    rows = [{"question_id": i, "text": text, "category": "any"} for i, text in enumerate(QUESTIONS)]
    questions = write_rows(tmp_path / "q.jsonl", rows)
    answers = tmp_path / "a.jsonl"
    own = ["--question-file", str(questions), "--answers-file", str(answers), "--device", "cpu", "--temperature", "0"]
    assert model_qa.main([*own, "--max_new_tokens", "8", *flags]) == 0
    return [json.loads(line) for line in answers.read_text().splitlines()]


def test_a_language_model_answers_as_transformers_own(llama: Path, tmp_path: Path) -> None:
    rows = ask(tmp_path, "--model-name", str(llama), "--conv-mode", "vicuna_v1")
    assert [(row["question_id"], row["prompt"]) for row in rows] == list(enumerate(QUESTIONS))
    tokenizer = load_pretrained_model(llama, device="cpu")[0]
    model = LlamaForCausalLM.from_pretrained(llama)
    for row, text in zip(rows, QUESTIONS, strict=True):
        ids = torch.tensor([tokenizer_image_token(PROMPT.format(text), tokenizer)])
        assert IMAGE_TOKEN_INDEX not in ids
        said = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
        assert row["text"] == tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True).strip()
    assert len({row["text"] for row in rows}) == 2


def test_a_llava_answers_without_a_picture(tmp_path: Path) -> None:
    folder = make_llava_checkpoint(tmp_path / "llava")
    rows = ask(tmp_path, "--model-path", str(folder))
    assert [row["metadata"]["image"] for row in rows] == [None, None]
    assert {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"} == set(rows[0])


def test_a_line_without_a_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = write_rows(tmp_path / "q.jsonl", [{"question_id": 1}])
    assert model_qa.main(["--question-file", str(questions)]) == 2
    assert "q.jsonl:1: the row has no text" in capsys.readouterr().err
