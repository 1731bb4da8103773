"""The MLP prior for positions (paper section 3.2): coordinates -> a position embedding, and its weights on disk."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FREQUENCIES = "frequencies"

AUTHORS_BANDS = 48
"""Bands of the authors' training script."""

PRIOR_FILE = "prior.safetensors"
"""The prior's file name in a checkpoint's folder."""

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts save a state dict."""

EXPECTED = "expected what CoordinateMLP.save writes, or layers.N.weight and layers.N.bias as the authors save them"


class CoordinateMLP(nn.Module):
    """(u_row, u_col) in [-1, 1] with Fourier features -> hidden tanh layers -> an embedding.

    Args:
        dim: D, width of the embeddings.
        hidden: width of the hidden layers.
        depth: number of hidden layers.
        bands: frequencies per coordinate; each gives a sine and a cosine, so 12 bands are the paper's 48 features.
        frequencies: float (bands,), at least 0; by default `smooth_frequencies`.
    """

    frequencies: Tensor
    source: tuple[Path, int] | None = None
    """(file, its modification time in ns) that the prior was read from; None if it was not read from a file."""

    def __init__(
        self, dim: int, hidden: int = 1024, depth: int = 4, bands: int = 12, frequencies: Tensor | None = None
    ) -> None:
        super().__init__()
        self.register_buffer(FREQUENCIES, smooth_frequencies(bands) if frequencies is None else frequencies.float())
        widths = [2 + 4 * len(self.frequencies)] + [hidden] * depth + [dim]
        self.layers = nn.ModuleList(nn.Linear(i, o, dtype=torch.float32) for i, o in pairwise(widths))

    def forward(self, coordinates: Tensor) -> Tensor:
        """Computes the embeddings of coordinates: (..., 2) -> (..., D), float32."""
        # Two equal factors, as in the authors' code: at frequencies of up to 2e4 float32 then rounds as theirs does.
        factors = self.frequencies.sqrt()
        angles = (coordinates[..., None] * factors * factors).flatten(-2)  # (..., 2 bands)
        features = torch.cat([coordinates, angles.sin(), angles.cos()], dim=-1)
        for layer in self.layers[:-1]:
            features = torch.tanh(layer(features))
        return self.layers[-1](features)

    def save(self, path: str | Path) -> None:
        """Writes the weights as safetensors."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> CoordinateMLP:
        """Reads a prior: our file, or the state dict of the authors' InterpolationMLP.

        A file that `save` wrote records its frequencies. The authors' (`.pt`, read with `weights_only=True`) does not:
        the number of bands follows from its width, and `authors_frequencies` are used.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged or holds anything else.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no MLP prior at {path}")
        written, state = path.stat().st_mtime_ns, _read_state(path)
        frequencies = state.pop(FREQUENCIES, None)
        weights, biases = _linear_layers(state, path)
        bands = (weights[0].shape[1] - 2) // 4
        if frequencies is None:
            frequencies = authors_frequencies(bands)
            weights[0] = _reorder_authors_inputs(weights[0])
        elif frequencies.shape != (bands,) or not (frequencies.isfinite() & (frequencies >= 0)).all():
            raise ValueError(
                f"{path} holds frequencies of shape {tuple(frequencies.shape)}; expected {bands} finite numbers of at"
                f" least 0, as its first layer has {2 + 4 * bands} inputs"
            )
        with torch.device("cpu"):  # whatever PyTorch's default is
            prior = cls(weights[-1].shape[0], weights[0].shape[0], len(weights) - 1, frequencies=frequencies)
        for layer, weight, bias in zip(prior.layers, weights, biases, strict=True):
            layer.load_state_dict({"weight": weight, "bias": bias})
        prior.source = (path, written)
        return prior

    def is_current(self, path: str | Path) -> bool:
        """Whether the prior is up to date: False only if it was read from `path` and the file has changed since."""
        path = Path(path)
        if self.source is None or self.source[0] != path or not path.is_file():
            return True
        return path.stat().st_mtime_ns == self.source[1]


def smooth_frequencies(bands: int) -> Tensor:
    """Makes our frequencies: (pi / 2) * (j + 1) for band j, counted from 0.

    Up to `bands` quarter periods each way: below the Nyquist rate of a 24 x 24 table, so it is smooth in between.
    """
    return torch.arange(1, bands + 1, dtype=torch.float32) * (math.pi / 2)


def authors_frequencies(bands: int) -> Tensor:
    """Makes the frequencies of the authors' released code: (pi j)^2 for band j from 0."""
    return (torch.arange(bands, dtype=torch.float64, device="cpu") * math.pi).float() ** 2


def _reorder_authors_inputs(weight: Tensor) -> Tensor:
    """Reorders a first layer's columns to our features: coordinates, sines of (row, col), cosines of (row, col).

    The authors' order is coordinates, sines of row, cosines of row, sines of col, cosines of col.
    """
    coordinates, features = weight.split([2, weight.shape[1] - 2], dim=1)
    sin_row, cos_row, sin_col, cos_col = features.chunk(4, dim=1)
    return torch.cat([coordinates, sin_row, sin_col, cos_row, cos_col], dim=1)


def _read_state(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a file by name, without wrapping dicts and the prefix of a wrapped module."""
    if path.suffix == ".safetensors":
        try:
            state: Any = load_file(str(path))
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file, or is truncated: {error}") from None
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # a damaged pickle raises errors of any kind
            raise ValueError(
                f"{path} can't be read: it is damaged, or holds more than tensors, as a whole pickled module does. Such"
                " files can run code and are refused; save torch.save(module.state_dict(), FILE)"
            ) from None
    for name in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
            break
    if not isinstance(state, Mapping):
        raise ValueError(f"{path} holds a {type(state).__name__}, which is not an MLP prior; {EXPECTED}")
    if others := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{path} is not an MLP prior: {others[0]!r} is not a tensor; {EXPECTED}")
    if others := [str(name) for name, value in state.items() if value.is_meta or value.layout != torch.strided]:
        raise ValueError(f"{path} is not an MLP prior: {others[0]!r} is sparse or has no values; {EXPECTED}")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def _linear_layers(state: Mapping[str, Tensor], path: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Reads float32 weights and biases in order; the layers must form a chain from coordinates to an embedding."""
    parts: dict[str, dict[int, Tensor]] = {"weight": {}, "bias": {}}
    for name, tensor in state.items():
        match = re.fullmatch(r"layers\.(\d+)\.(weight|bias)", name)
        if match is None:
            raise ValueError(f"{path} is not an MLP prior: it holds {name!r}; {EXPECTED}")
        parts[match[2]][int(match[1])] = tensor.float()
    if wrong := next((name for name, tensor in state.items() if not tensor.float().isfinite().all()), None):
        raise ValueError(f"{path} is damaged: {wrong} holds NaN or infinity")
    weights, biases = ([tensors[number] for number in sorted(tensors)] for tensors in parts.values())
    if parts["weight"].keys() != parts["bias"].keys() or not _is_chain(weights, biases):
        raise ValueError(
            f"{path} is not an MLP prior: linear layers of shapes {[tuple(weight.shape) for weight in weights]};"
            " expected (hidden, 2 + 4 bands), (hidden, hidden) ..., (embedding, hidden), each with a bias"
        )
    return weights, biases


def _is_chain(weights: list[Tensor], biases: list[Tensor]) -> bool:
    """Checks that layers lead from coordinates through hidden layers of equal width to an embedding."""
    if len(weights) < 2 or any(weight.ndim != 2 for weight in weights):
        return False
    chained = all(a.shape[0] == b.shape[1] for a, b in pairwise(weights))
    hidden_equal = len({len(weight) for weight in weights[:-1]}) == 1
    matched = all(bias.shape == weight.shape[:1] for bias, weight in zip(biases, weights, strict=True))
    inputs = weights[0].shape[1]
    return chained and hidden_equal and matched and inputs >= 6 and (inputs - 2) % 4 == 0
