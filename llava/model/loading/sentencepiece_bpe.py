"""SentencePiece models of Llama's kind: read, checked, and built as a tokenizer of the tokenizers library."""

from __future__ import annotations

from typing import Any

from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE

SPACE = "\u2581"
"""SentencePiece's character for a space."""


def user_symbols(proto: Any) -> list[str]:
    """Lists a model's user-defined symbols, as Yi's has: found in any text, and one token each."""
    return [piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]


def parse_model(content: bytes, file: str) -> Any:
    """Parses a SentencePiece model.

    Raises:
        ValueError: it is not one, or not of Llama's kind: BPE without normalization.
    """
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(content)  # type: ignore[attr-defined]
    except Exception as error:  # protobuf's DecodeError is not public
        raise ValueError(f"{file} is not a SentencePiece model; it may be truncated") from error
    if not proto.pieces:
        raise ValueError(f"{file} is not a SentencePiece model: it is empty or truncated")
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    oddities = {
        "model_type other than BPE": trainer.model_type != trainer.BPE,
        f"the normalizer {normalizer.name!r}": bool(normalizer.precompiled_charsmap),
        "remove_extra_whitespaces": normalizer.remove_extra_whitespaces,
        "escape_whitespaces off": not normalizer.escape_whitespaces,
        "treat_whitespace_as_suffix": trainer.treat_whitespace_as_suffix,
    }
    if found := [name for name, holds in oddities.items() if holds]:
        raise ValueError(
            f"{file} has {', '.join(found)}, which Llama's tokenizer does not have; give a tokenizer.json with"
            ' tokenizer_class "PreTrainedTokenizerFast" in tokenizer_config.json instead'
        )
    return proto


def make_backend(proto: Any, unknown: str | None) -> Tokenizer:
    """Builds a tokenizer with the same pieces, merged in the same order: by score, the likeliest first."""
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    merges = []
    for piece in proto.pieces:
        if piece.type != piece.NORMAL:  # bytes and control tokens are never merged
            continue
        text = piece.piece
        pairs = ((text[:cut], text[cut:]) for cut in range(1, len(text)))
        merges += [(-piece.score, *pair) for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
    merges.sort(key=lambda merge: merge[0])  # a stable sort: of equal scores the first piece's come first
    model = BPE(
        vocab=vocabulary,
        merges=[(left, right) for _, left, right in merges],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=proto.trainer_spec.byte_fallback,
    )
    tokenizer = Tokenizer(model)
    # In the normalized text: a stretch of text gets its prefix before its symbols are found.
    tokenizer.add_tokens([AddedToken(symbol, normalized=True, special=False) for symbol in user_symbols(proto)])
    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])  # for readers of tokenizer.json
    return tokenizer
