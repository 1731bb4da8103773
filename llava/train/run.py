"""One run of training: arguments -> model and data -> trainer -> files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch.distributed.nn  # noqa: F401 - before a process group, which defaults of its functions would keep
from transformers import PreTrainedTokenizerBase, set_seed

from llava import conversation
from llava.conversation import Conversation
from llava.model.loading.checkpoint import LORA_FILE
from llava.model.loading.files import read_json, tensor_shapes
from llava.model.loading.folder import NON_LORA_FILE, PROJECTOR_FILE
from llava.model.vision.preparer import Preparer
from llava.train.arguments import ParsedArguments, parse_arguments
from llava.train.assemble import assemble
from llava.train.data.dataset import make_supervised_data_module
from llava.train.data.lengths import measure_lengths
from llava.train.evaluation import QuestionEvaluation
from llava.train.finite import START_FROM_WEIGHTS
from llava.train.llava_trainer import LLaVATrainer
from llava.train.plan import check_resumed_plan
from llava.train.saving import checkpoints, safe_save_model_for_hf_trainer
from llava.train.throughput import gather_objects

logger = logging.getLogger(__name__)

SCHEDULER_FILE = "scheduler.pt"
READ_FILES = (
    "optimizer*",
    SCHEDULER_FILE,
    "rng_state*",
    "model*",
    "adapter_model*",
    "pytorch_model*",
    PROJECTOR_FILE,
    NON_LORA_FILE,
)
"""Files of a checkpoint that a resumed run reads."""
OPTIMIZER_FILES = ("optimizer*", "global_step*")
"""What holds an optimizer's state in a checkpoint: torch's file, FSDP's file or folder, DeepSpeed's folder."""


def run(argv: Sequence[str], attn_implementation: str | None = None) -> LLaVATrainer:
    """Trains as a command line says; see `llava.train.train.train`."""
    args = parse_arguments(argv)
    training: Any = args.training
    training.tune_mm_mlp_adapter = args.model.tune_mm_mlp_adapter
    begun = find_resume(training)
    set_seed(training.seed)  # before a new projector and adapters are drawn
    tokenizer, model, template = assemble(args, attn_implementation)
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
    trainer.evaluator = evaluator
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


def find_resume(training: Any) -> str | None:
    """Finds the checkpoint to continue from: the flag's, or the last one in the output folder.

    Raises:
        FileNotFoundError: the flag names no folder.
        ValueError: it is a checkpoint of another mode of training; or the flag is false, and there is one.
    """
    given, found = training.resume_from_checkpoint, checkpoints(training.output_dir)
    if str(given).lower() == "false" and found:
        raise ValueError(
            f"--resume_from_checkpoint is {given}, but {training.output_dir} has {found[-1].name}, which the run would"
            " continue from; to start over give another --output_dir, or move its checkpoints away"
        )
    if not given or str(given).lower() in ("true", "false"):
        folder = found[-1] if found else None
    else:
        folder = Path(given)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"--resume_from_checkpoint {given} is not a folder; name a checkpoint-N, or leave the flag out to"
                " continue from the last one in --output_dir"
            )
    if folder is None:
        return None
    check_whole(folder)
    has_projector, has_lora = ((folder / name).is_file() for name in (PROJECTOR_FILE, LORA_FILE))
    if has_projector != training.tune_mm_mlp_adapter or has_lora != training.lora_enable:
        kind = "the projector alone" if has_projector else "LoRA" if has_lora else "the whole model"
        raise ValueError(
            f"{folder} is a checkpoint of training {kind}, but these flags do not; give its flags, or another"
            " --output_dir"
        )
    if not any(next(folder.glob(pattern), None) for pattern in OPTIMIZER_FILES):
        raise ValueError(
            f"{folder} has no state of an optimizer, as --save_only_model leaves it, so its learning rates would"
            f" begin again; give another --output_dir, and {START_FROM_WEIGHTS}"
        )
    if not (folder / SCHEDULER_FILE).is_file() and not any(folder.glob("global_step*")):  # DeepSpeed's own is in there
        raise ValueError(
            f"{folder} lacks {SCHEDULER_FILE}, without which transformers begins the optimizer and its learning rates"
            " again; copy it there, or give another --output_dir"
        )
    return str(folder)


def check_whole(folder: Path) -> None:
    """Checks that a checkpoint is complete as far as its small files and the ends of its large ones show.

    Raises:
        ValueError: it is not, with the file.
    """
    state = folder / "trainer_state.json"
    if not state.is_file():
        raise ValueError(
            f"{folder} holds a part of a checkpoint: it has no {state.name}. A folder of LLaVA's first stage holds the"
            " projector alone, which is a start (--pretrain_mm_mlp_adapter) and can't be continued. Of a run on several"
            f" machines without a shared folder, copy the files of all machines' {folder.name} together. Or give"
            " another --output_dir"
        )
    read_json(state)
    for file in sorted({file for pattern in READ_FILES for file in folder.glob(pattern) if file.is_file()}):
        if file.suffix == ".safetensors":
            tensor_shapes(file)
        elif file.suffix in (".bin", ".pt", ".pth") and not is_zipfile(file):
            raise ValueError(f"{file} is damaged or incomplete; copy it again, or give another --output_dir")


def check_same_step(names: Sequence[str | None]) -> None:
    """Checks that all processes continue from a checkpoint of the same name.

    Raises:
        ValueError: they do not; without a shared folder, each machine keeps checkpoints of its own.
    """
    if len(set(names)) > 1:
        raise ValueError(
            f"the processes would continue from different checkpoints: {', '.join(str(name) for name in names)}; copy"
            " the last one that every machine has, or remove the others"
        )


def check_resumed_adapter(folder: Path, model: Any) -> None:
    """Checks that the adapters in a checkpoint are those that the flags have made.

    Raises:
        ValueError: they are of another rank or scale.
    """
    if not (folder / LORA_FILE).is_file():
        return
    saved, (config, *_) = read_json(folder / LORA_FILE), model.peft_config.values()
    for flag, name in (("lora_r", "r"), ("lora_alpha", "lora_alpha"), ("lora_bias", "bias")):
        if (value := getattr(config, name)) != saved.get(name, value):
            raise ValueError(
                f"--{flag} is {value!r}, but {folder} was trained with {saved[name]!r}; give that, or another"
                " --output_dir"
            )


def log_plan(model: Any, samples: Any) -> None:
    """Logs how much is trained on what."""
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    every = sum(weight.numel() for weight in model.parameters())
    logger.info("training %s of %s parameters; samples: %s", f"{trained:,}", f"{every:,}", f"{len(samples):,}")
