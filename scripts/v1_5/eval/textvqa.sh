#!/usr/bin/env bash
# TextVQA: the VQA soft accuracy. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DIR=$EVAL_DIR/textvqa
need "$DIR/llava_textvqa_val_v051_ocr.jsonl" "$ANNOTATIONS" \
    "$DIR/TextVQA_0.5.1_val.json" "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json, into $DIR" \
    "$DIR/train_images" "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip, unpacked in $DIR"

check -m llava.eval.eval_textvqa --annotation-file "$DIR/TextVQA_0.5.1_val.json" \
    --check "$DIR/llava_textvqa_val_v051_ocr.jsonl"
answer llava.eval.model_vqa_loader "$DIR/answers/$NAME" "$DIR/answers/$NAME.jsonl" --temperature 0 \
    --question-file "$DIR/llava_textvqa_val_v051_ocr.jsonl" --image-folder "$DIR/train_images"
"$PYTHON" -m llava.eval.eval_textvqa --annotation-file "$DIR/TextVQA_0.5.1_val.json" \
    --result-file "$DIR/answers/$NAME.jsonl" --json "${SCORE_FILE:-$DIR/scores/$NAME.json}"
