"""The classes of attached models, and the change to and from them.

A model is attached by giving the instance a subclass of its own class, under the same name: nothing in transformers is
replaced, other models are untouched, and saved files name the class that transformers knows.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import wraps
from pathlib import Path
from types import MethodType
from typing import Any

from torch import nn

from qlip.integrations.attachment import Attachment
from qlip.integrations.subclasses import BuildsPlain, MadeSubclass, find_base, make_subclass
from qlip.mlp import PRIOR_FILE
from qlip.replicas import RefusesReplicas


class AttachedMixin(RefusesReplicas, MadeSubclass):
    """Mixed into the class of every attached module."""

    attachment: Attachment


class AttachedPreTrainedMixin(BuildsPlain, AttachedMixin):
    """Mixed into the class of an attached model of transformers."""

    config: Any

    def save_pretrained(self, save_directory: Any, is_main_process: bool = True, *args: Any, **kwargs: Any) -> Any:
        """Saves the model as its own class does, and in the main process an MLP prior for positions beside it."""
        prior = self.attachment.vision.prior
        settings = getattr(self.config, "qlip", None)  # a part's configuration has none
        if prior is None or settings is None:
            return super().save_pretrained(save_directory, is_main_process, *args, **kwargs)  # type: ignore[misc]
        if is_main_process:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            prior.save(Path(save_directory) / PRIOR_FILE)
        self.config.qlip = {**settings, "mlp": PRIOR_FILE}
        try:
            return super().save_pretrained(save_directory, is_main_process, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.config.qlip = settings

    def _get_files_timestamps(self, working_dir: Any) -> dict[str, float]:
        """Lists the files that `save_pretrained(push_to_hub=True)` found, without the prior, so that it is uploaded.

        transformers uploads only what changes afterwards.
        """
        times = super()._get_files_timestamps(working_dir)  # type: ignore[misc]
        return {name: time for name, time in times.items() if name != PRIOR_FILE}


def name_arguments(forward: Any) -> Any:
    """Makes a mixin's method take positional arguments in the order of the model's own class."""

    @wraps(forward)
    def named(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args:
            kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
            known = inspect.signature(getattr(find_base(self), forward.__name__)).parameters.values()
            names = [each.name for each in known if each.kind in kinds][1:]
            if len(args) > len(names):
                raise TypeError(f"{forward.__name__} takes at most {len(names)} unnamed arguments, not {len(args)}")
            given = dict(zip(names, args, strict=False))
            if twice := given.keys() & kwargs.keys():
                raise TypeError(f"{forward.__name__} got several values for {', '.join(sorted(twice))}")
            kwargs |= given
        return forward(self, **kwargs)

    return named


def mark_part(part: nn.Module, whole: nn.Module) -> None:
    """Marks a module as part of an attached model: it can't be attached or detached alone."""
    part.attached_within = type(whole).__name__  # type: ignore[assignment]  # a name only: parts are copied and pickled


def check_not_part(model: nn.Module) -> None:
    """Raises TypeError if a model is a part of an attached one."""
    if (whole := vars(model).get("attached_within")) is not None:
        raise TypeError(f"this {type(model).__name__} is a part of an attached {whole}; attach or detach the whole")


def check_same_tower(tower: nn.Module, attachment: Attachment) -> None:
    """Raises TypeError if an attached model's tower was replaced; compiling it is allowed.

    Another one, such as PEFT's copy for `modules_to_save`, would silently not be used.
    """
    own = getattr(tower, "_orig_mod", tower)  # what torch.compile wraps
    parts = {name: getattr(part, "_orig_mod", part) for name, part in own.named_children()}
    known = {name: getattr(part, "_orig_mod", part) for name, part in attachment.vision.named_children()}
    if "attached_within" not in vars(own) or any(part is not parts.get(name) for name, part in known.items()):
        raise TypeError(
            f"the vision tower was replaced by a {type(tower).__name__} after qlip.attach, which still runs the old"
            " one; detach the model, replace the tower, and attach again. To train the tower with PEFT, set"
            " requires_grad on it instead of naming it in modules_to_save"
        )


def find_attachment(model: nn.Module) -> Attachment | None:
    """Finds what is attached to a model, or to a part of it; None if nothing is."""
    return next((module.attachment for module in model.modules() if isinstance(module, AttachedMixin)), None)


def _check_forward(module: nn.Module, new: type) -> None:
    """Checks that a module will run the `forward` of the class that it gets, and not one that is stored on it.

    Raises:
        TypeError: mixed precision, torch.compile or another library has put one there, around that of the old class.
    """
    stored = vars(module).get("forward")
    if stored is None or "_old_forward" in vars(module) or _is_alias(module):
        return  # accelerate's hooks look up what they wrap
    while (inner := getattr(stored, "__wrapped__", None) or getattr(stored, "__func__", None)) is not None:
        stored = inner
    if stored is not inspect.unwrap(new.forward):  # type: ignore[attr-defined]
        raise TypeError(
            f"this {type(module).__name__} has a forward method of its own, which mixed precision (accelerate,"
            " Trainer with bf16 or fp16), torch.compile(model.forward) or another library has stored on it and which"
            " would run in place of its class's; remove it first: model ="
            " accelerator.unwrap_model(model, keep_fp32_wrapper=False), or del model.forward"
        )


def _is_alias(module: nn.Module) -> bool:
    """Whether the `forward` that is stored on a module is its class's, or what its decorators wrap.

    That is what accelerate leaves behind when its hooks or its mixed precision are taken off.
    """
    stored: Any = getattr(vars(module).get("forward"), "__func__", None)
    own: Any = type(module).forward
    while own is not stored and own is not None:
        own = getattr(own, "__wrapped__", None)
    return own is not None


def patch_classes(model: nn.Module, mixins: Sequence[tuple[nn.Module, type]], attachment: Attachment) -> None:
    """Gives modules of a model the attached subclasses of their own classes, in place of an earlier attachment's.

    Raises:
        TypeError: one would not run its new class's `forward`; then nothing has changed.
    """
    for module, mixin in mixins:
        base = find_base(module) if isinstance(module, AttachedMixin) else type(module)
        _check_forward(module, make_subclass(mixin, base))
    _restore_classes(model)
    for module, mixin in mixins:
        _change_class(module, make_subclass(mixin, type(module)))  # type: ignore[arg-type]
        module.attachment = attachment  # type: ignore[assignment]  # a plain object, so no second name for the tower


def unpatch(model: nn.Module) -> None:
    """Restores the classes of a model and of its parts.

    Raises:
        TypeError: one would not run its own class's `forward`; then nothing has changed.
    """
    for module in model.modules():
        if isinstance(module, AttachedMixin):
            _check_forward(module, find_base(module))
    _restore_classes(model)


def _restore_classes(model: nn.Module) -> None:
    for module in list(model.modules()):
        vars(module).pop("attached_within", None)
        if isinstance(module, AttachedMixin):
            _change_class(module, find_base(module))
            del module.attachment


def _change_class(module: nn.Module, new: type) -> None:
    """Changes the class of an instance, also inside accelerate's hooks, which wrap the instance's `forward`.

    A `device_map` over several devices puts such hooks on every part of a model.
    """
    if _is_alias(module):
        del module.forward
    module.__class__ = new  # type: ignore[assignment]
    if "_old_forward" in vars(module):
        module._old_forward = MethodType(new.forward, module)  # type: ignore[attr-defined, assignment]
        module.forward.__wrapped__ = module._old_forward  # type: ignore[attr-defined]
