"""The MLP prior for positions (paper section 3.2): coordinates -> a position embedding, and its weights on disk.

Knows nothing of leaves or towers; `qlip.positions` evaluates it.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FREQUENCIES = "frequencies"

PRIOR_FILE = "prior.safetensors"
"""Its name in a checkpoint's folder."""


class CoordinateMLP(nn.Module):
    """(u_row, u_col) in [-1, 1] with Fourier features -> hidden tanh layers -> an embedding.

    Args:
        dim: D, width of the embeddings.
        hidden: width of the hidden layers.
        depth: number of hidden layers.
        bands: frequencies per coordinate; each gives a sine and a cosine, so 12 bands are the paper's 48 features.
    """

    frequencies: Tensor

    def __init__(self, dim: int, hidden: int = 1024, depth: int = 4, bands: int = 12) -> None:
        super().__init__()
        # Up to `bands` quarter periods each way: below the Nyquist rate of a 24 x 24 table, hence smooth in between.
        self.register_buffer(FREQUENCIES, torch.arange(1, bands + 1, dtype=torch.float32) * (math.pi / 2))
        widths = [2 + 4 * bands] + [hidden] * depth + [dim]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(widths))

    def forward(self, coordinates: Tensor) -> Tensor:
        """(..., 2) -> (..., D), float32."""
        angles = (coordinates[..., None] * self.frequencies).flatten(-2)  # (..., 2 bands)
        features = torch.cat([coordinates, angles.sin(), angles.cos()], dim=-1)
        for layer in self.layers[:-1]:
            features = torch.tanh(layer(features))
        return self.layers[-1](features)

    def save(self, path: str | Path) -> None:
        """Writes the weights as safetensors."""
        save_file({name: tensor.contiguous() for name, tensor in self.state_dict().items()}, str(path))

    @classmethod
    def load(cls, path: str | Path) -> CoordinateMLP:
        """Reads our safetensors, or a `.pt` state dict of linear layers in order, such as the authors'.

        A `.pt` is read with `weights_only=True`; names do not matter, the order of the layers does. Where it holds no
        `frequencies`, ours are taken.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the weights are no chain of linear layers from coordinates to an embedding.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no MLP prior at {path}")
        if path.suffix == ".safetensors":
            state = load_file(str(path))
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        weights = [tensor.float() for name, tensor in state.items() if tensor.ndim == 2 and name.endswith("weight")]
        biases = [tensor.float() for name, tensor in state.items() if tensor.ndim == 1 and name.endswith("bias")]
        _check_chain(weights, biases, path)
        bands = (weights[0].shape[1] - 2) // 4
        interleaved = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
        prior = cls(weights[-1].shape[0], weights[0].shape[0], len(weights) - 1, bands)
        with torch.no_grad():
            for parameter, tensor in zip(prior.layers.parameters(), interleaved, strict=True):
                parameter.copy_(tensor)
            if FREQUENCIES in state:
                prior.frequencies.copy_(state[FREQUENCIES])
        return prior


def _check_chain(weights: list[Tensor], biases: list[Tensor], path: Path) -> None:
    shapes = [tuple(weight.shape) for weight in weights]
    chained = len(shapes) > 1 and all(a[0] == b[1] for a, b in pairwise(shapes))
    hidden_equal = len({shape[0] for shape in shapes[:-1]}) == 1
    matched = [bias.shape[0] for bias in biases] == [shape[0] for shape in shapes]
    if not (chained and hidden_equal and matched) or shapes[0][1] < 6 or (shapes[0][1] - 2) % 4:
        raise ValueError(
            f"{path} is no MLP prior: linear layers of shapes {shapes}; expected (hidden, 2 + 4 bands),"
            " (hidden, hidden) ..., (embedding, hidden), each with a bias"
        )
