"""One run of training: arguments -> model and data -> trainer -> files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed.nn  # noqa: F401 - before a process group, which defaults of its functions would keep
from transformers import PreTrainedTokenizerBase, set_seed

from llava import conversation
from llava.conversation import Conversation
from llava.model.vision.preparer import Preparer
from llava.train.arguments import ParsedArguments, parse_arguments
from llava.train.assemble import assemble
from llava.train.data.dataset import make_supervised_data_module
from llava.train.data.lengths import measure_lengths
from llava.train.evaluation import QuestionEvaluation
from llava.train.llava_trainer import LLaVATrainer
from llava.train.parameters import is_fsdp
from llava.train.paths import check_paths
from llava.train.plan import check_resumed_plan
from llava.train.resume import check_resumed_adapter, check_same_step, find_resume
from llava.train.saving import safe_save_model_for_hf_trainer
from llava.train.settings import check_resumed_settings, list_settings
from llava.train.start import choose_start
from llava.train.throughput import gather_objects

logger = logging.getLogger(__name__)


def run(argv: Sequence[str], attn_implementation: str | None = None) -> LLaVATrainer:
    """Trains as a command line says; see `llava.train.train.train`."""
    args = parse_arguments(argv)
    check_paths(args)
    training: Any = args.training
    training.tune_mm_mlp_adapter = args.model.tune_mm_mlp_adapter
    begun = find_resume(training)
    set_seed(training.seed)  # before a new projector and adapters are drawn
    start = choose_start(args)
    settings = list_settings(args, start)
    if begun is not None:
        check_resumed_settings(Path(begun), settings)
    tokenizer, model, template = assemble(args, training.attn_implementation or attn_implementation, start)
    data = make_data(args, tokenizer, model, template)
    check_samples(data["train_dataset"], training)
    if data["eval_dataset"] is not None:
        check_evaluation(data["eval_dataset"])
    evaluator = QuestionEvaluation.of(args.data, training, tokenizer)
    lengths = None
    if training.batches_by_tokens:
        lengths = measure_lengths(
            data["train_dataset"],
            training.dataloader_num_workers,
            training.process_index,
            training.world_size,
            gather_objects,
            Path(training.output_dir),
        )
    if evaluator is not None and data["eval_dataset"] is None:
        data["eval_dataset"] = {}  # transformers wants one wherever it evaluates
    trainer = LLaVATrainer(
        model=model,
        tokenizer=tokenizer,
        args=training,
        lengths=lengths,
        max_bad_samples=args.data.max_bad_samples,
        **data,
    )
    check_sharded(trainer)
    trainer.evaluator, trainer.settings = evaluator, settings
    log_plan(model, data["train_dataset"])
    check_same_step(gather_objects(None if begun is None else Path(begun).name))
    if begun is not None:
        check_resumed_adapter(Path(begun), model)
        check_resumed_plan(Path(begun), trainer.plan)
        logger.info("continuing from %s", begun)
    trainer.train(resume_from_checkpoint=begun)
    if begun is not None and Path(begun).name == f"checkpoint-{trainer.state.global_step}":
        logger.warning(
            "%s has all %d steps already: nothing was trained; give another --output_dir, or more --num_train_epochs or"
            " --max_steps",
            begun,
            trainer.state.global_step,
        )
    trainer.throughput.finish()
    if dropped := trainer.throughput.describe_dropped():
        logger.warning(dropped)
    trainer.save_state()
    safe_save_model_for_hf_trainer(trainer, training.output_dir)
    return trainer


def make_data(
    args: ParsedArguments, tokenizer: PreTrainedTokenizerBase, model: Any, template: Conversation
) -> dict[str, Any]:
    """Builds the data sets and the collator, from arguments that hold what LLaVA's training sets on them, and more."""
    data: Any = args.data
    conversation.default_conversation = template  # LLaVA's `preprocess` reads it
    tower = model.get_vision_tower()
    data.is_multimodal = tower is not None
    data.template, data.max_length = template, args.training.model_max_length
    data.image_aspect_ratio = model.config.image_aspect_ratio
    data.mm_use_im_start_end = model.config.mm_use_im_start_end
    data.image_processor = None if tower is None else tower.image_processor
    data.preparer = None if tower is None else Preparer.of(tower).by_score()
    data.pack = args.training.model_max_length if args.training.pack else None
    return make_supervised_data_module(tokenizer, data)


def check_samples(samples: Any, training: Any) -> None:
    """Checks that something will be trained: transformers ends a run without a batch, or without gradients, in success.

    Raises:
        ValueError: the data make no whole batch, and others are dropped; or only the projector is trained, and no
            sample has an image.
    """
    batch = training.train_batch_size * training.world_size
    if training.dataloader_drop_last and not training.batches_by_tokens and len(samples) < batch:
        raise ValueError(
            f"--dataloader_drop_last leaves out all {len(samples)} samples, since a batch of all processes has {batch};"
            " leave it out, or lower --per_device_train_batch_size"
        )
    if training.tune_mm_mlp_adapter and not any(length > 0 for length in samples.modality_lengths):
        raise ValueError(
            "--tune_mm_mlp_adapter trains the projector alone, but no sample of --data_path has an image; name images"
            " in the field 'image'"
        )


def check_evaluation(samples: Any) -> None:
    """Checks that a sample of the evaluation can be used: the first evaluation may come after hours.

    Raises:
        ValueError: none can.
    """
    reasons = []
    for index in range(len(samples)):
        item = samples[index]
        if "skipped" not in item:
            return
        reasons.append(item["skipped"].reason)
    raise ValueError(f"no sample of the evaluation (--eval_data_path) can be used: {'; '.join(reasons[:3])}")


def check_sharded(trainer: Any) -> None:
    """Checks that FSDP shards the model if it is asked for; accelerate trains without a word where it does not.

    Raises:
        ValueError: it does not.
    """
    if is_fsdp(trainer.args) and not (trainer.is_fsdp_enabled or trainer.is_fsdp_xla_enabled):
        flag = "--fsdp" if trainer.args.fsdp else "ACCELERATE_USE_FSDP (accelerate's configuration)"
        raise ValueError(
            f"{flag} would do nothing: accelerate shards on GPUs alone, with a process for each, and this run is"
            f" {trainer.accelerator.distributed_type.value} on {trainer.args.device.type}; start it on GPUs by"
            f" torchrun, without --use_cpu, or leave {flag.partition(' ')[0]} out"
        )


def log_plan(model: Any, samples: Any) -> None:
    """Logs how much is trained on what."""
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    every = sum(weight.numel() for weight in model.parameters())
    logger.info("training %s of %s parameters; samples: %s", f"{trained:,}", f"{every:,}", f"{len(samples):,}")
