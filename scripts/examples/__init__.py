"""Examples of QLIP inside transformers, and the command line that they share."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from qlip.command import OneLineParser, names_folder, run_command


def run(example: Callable[..., None], argv: Sequence[str] | None = None) -> NoReturn:
    """Runs an example on a command line made of its parameters, and exits; an error is one line and exit code 2."""
    parser = OneLineParser(prog=Path(inspect.getfile(example)).stem)
    names: list[str] = []
    options: list[str] = []
    for name, parameter in inspect.signature(example).parameters.items():
        if parameter.default is parameter.empty:
            names.append(name)
            parser.add_argument(name, nargs="+" if parameter.kind is parameter.VAR_POSITIONAL else None)
        else:
            options.append(name)
            flag, default = f"--{name.replace('_', '-')}", parameter.default
            parser.add_argument(flag, default=default, help=f"a folder or a hub id ({default})")
    args = vars(parser.parse_args(argv))
    words = [word for name in names for word in (args[name] if isinstance(args[name], list) else [args[name]])]

    def work() -> None:
        for name in options:
            check_folder(args[name])
        example(*words, **{name: args[name] for name in options})

    sys.exit(run_command(parser.prog, work))


def check_folder(model_path: str) -> None:
    """Raises ValueError if a path that is no model id of the hub is not a folder; transformers' words are several."""
    if not Path(model_path).is_dir() and names_folder(model_path):
        raise ValueError(f"--model-path {model_path}: there is no such folder; model ids of the hub read OWNER/NAME")


def check_text_half(model_path: str) -> None:
    """Raises ValueError unless a checkpoint is a whole CLIP, whose text half reads the labels."""
    from transformers import PreTrainedConfig  # after the flags have been read

    kind = PreTrainedConfig.get_config_dict(model_path)[0].get("model_type")
    if kind != "clip":
        raise ValueError(f"--model-path {model_path} is of type {kind!r}, without CLIP's text half; give a whole CLIP")
