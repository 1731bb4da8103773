"""scripts.harness.vllm_check passes where the server gives transformers' answers, and fails where it does not."""

from __future__ import annotations

import io
from base64 import b64decode

import pytest
import torch

from playground.schedules import shipped_path
from scripts.checkpoints.formats import convert
from scripts.harness import vllm_check
from scripts.vllm_client import load_attached


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm") / "checkpoint"
    convert(shipped_path("joint"), folder)  # which the start token matters to
    return folder


@pytest.fixture(scope="module")
def language_model(checkpoint):
    return load_attached(str(checkpoint), torch.float32)


@torch.no_grad()
def reply(language_model, body, start=True):
    """What vLLM does: the prompt's tokens, its <image> replaced by the embeddings, and a greedy answer."""
    model, processor = language_model
    image, text = body["messages"][0]["content"]
    embeds = torch.load(io.BytesIO(b64decode(image["image_embeds"])), weights_only=True)
    content = [{"type": "image"}, text]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    ids = processor.tokenizer(prompt, add_special_tokens=start, return_tensors="pt").input_ids[0]
    (place,) = (ids == model.config.image_token_id).nonzero()
    words = model.get_input_embeddings()(ids)
    joined = torch.cat([words[:place], embeds, words[place + 1 :]])[None]
    plain = model.model.language_model
    tokens, scores = [], []
    while not tokens or tokens[-1] != processor.tokenizer.eos_token_id:
        logits = model.lm_head(plain(inputs_embeds=joined).last_hidden_state[0, -1]).log_softmax(-1)
        tokens.append(int(logits.argmax()))
        scores.append({"logprob": float(logits.max())})
        joined = torch.cat([joined, model.get_input_embeddings()(torch.tensor([[tokens[-1]]]))], 1)
    answer = processor.tokenizer.decode(tokens, skip_special_tokens=True)
    return {"choices": [{"message": {"content": answer}, "logprobs": {"content": scores}}]}


@pytest.mark.parametrize(("start", "code"), [(True, 0), (False, 2)], ids=["right", "without the start token"])
def test_the_check_sees_what_differs(checkpoint, language_model, monkeypatch, capsys, start, code):
    monkeypatch.setattr(vllm_check, "post", lambda server, body: reply(language_model, body, start))
    assert vllm_check.main(["--model-path", str(checkpoint), "--scenes", "1", "--clients", "1"]) == code
    said = capsys.readouterr()
    assert "of 9 answers the same" in said.out
    assert ("vLLM and transformers disagree" in said.err) is (code != 0)
