"""Floating-point operations of a vision tower and of a language model's prefill, by formula.

A multiplication with its addition counts 2, as in `torch.utils.flop_counter`. Counted are products of matrices: all
linear layers, attention over all pairs of tokens (a causal model's masked half is computed, so it counts), and the
interpolation of positions from the table. Not counted: norms, activations, softmax, the choice of leaves, resampling,
the MLP prior, and the decoding of the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from qlip import QLIPVisionModel


@dataclass(frozen=True)
class LayerCost:
    """The sizes of a transformer layer on which its operations depend."""

    projections: int
    """Weights of the projections to queries, keys and values, and from the heads."""
    mlp: int
    """Weights of the MLP."""
    width: int
    """Entries of a query over all heads."""

    def attention(self, tokens: int) -> int:
        """Counts the attention block over T tokens: projections, T x T logits, and the weighted sum of the values."""
        return 2 * tokens * self.projections + 4 * tokens**2 * self.width

    def run(self, tokens: int, left: int | None = None) -> int:
        """Counts a whole layer; `left` tokens enter the MLP where some are merged before it."""
        return self.attention(tokens) + 2 * (tokens if left is None else left) * self.mlp


@dataclass(frozen=True)
class TowerCost:
    """A CLIP tower up to its selected layer."""

    layer: LayerCost
    depth: int
    """Layers that the selected hidden state needs. LLaVA's CLIP runs the last one too and drops it; not counted."""
    patch: int
    """Weights of the patch embedding."""
    table: int
    """Entries of the position table, without [CLS]'s; each leaf's position is a weighted sum of its rows."""
    prefix: int
    """Tokens before the patches: [CLS]."""

    @classmethod
    def of(cls, vision: QLIPVisionModel) -> TowerCost:
        """Reads the sizes of a tower."""
        config = vision.config
        width = config.hidden_size
        layer = LayerCost(4 * width**2, 2 * width * config.intermediate_size, width)
        patch = config.num_channels * config.patch_size**2 * width
        return cls(layer, vision.select_layer, patch, vision.position_table.numel(), len(vision.cls_position))

    def embed(self, patches: int, interpolated: bool = True) -> int:
        """Counts the embedding of patches and, where they are interpolated, of their positions."""
        return 2 * patches * (self.patch + self.table * interpolated)

    def run(self, patches: int, interpolated: bool = True) -> int:
        """Counts the tower over some patches and its prefix."""
        return self.embed(patches, interpolated) + self.depth * self.layer.run(patches + self.prefix)


@dataclass(frozen=True)
class ModelCost:
    """A LLaVA: tower, projector, and prefill."""

    tower: TowerCost
    projector: int
    """Weights of the projector."""
    layer: LayerCost
    """Of the language model."""
    depth: int
    """Layers of the language model."""
    head: int
    """Weights of the output layer; prefill computes the logits of one token."""
    query: int
    """Weights of a layer's projection to queries."""

    @classmethod
    def of(cls, model: Any) -> ModelCost:
        """Reads the sizes of a `LlavaLlamaForCausalLM` with QLIP's tower."""
        config = model.config
        size = config.head_dim or config.hidden_size // config.num_attention_heads
        queries, keys = (size * heads for heads in (config.num_attention_heads, config.num_key_value_heads))
        layer = LayerCost(
            2 * config.hidden_size * (queries + keys), 3 * config.hidden_size * config.intermediate_size, queries
        )
        projector = sum(part.weight.numel() for part in model.get_model().mm_projector.modules() if _is_linear(part))
        head = config.hidden_size * config.vocab_size
        vision = model.get_vision_tower().vision_tower
        query = config.hidden_size * queries
        return cls(TowerCost.of(vision), projector, layer, config.num_hidden_layers, head, query)

    def encode(self, patches: int, interpolated: bool = True) -> int:
        """Counts tower and projector over the patches of one image; CLIP's own tower does not interpolate."""
        return self.tower.run(patches, interpolated) + self.project(patches)

    def project(self, tokens: int) -> int:
        """Counts the projector over some tokens."""
        return 2 * tokens * self.projector

    def prefill(self, tokens: int) -> int:
        """Counts the language model over a prompt of `tokens`, text and visual ones, up to one token's logits."""
        return self.depth * self.layer.run(tokens) + 2 * self.head

    def attend(self, tokens: int) -> int:
        """Counts the attention logits of one more query: what reading the last token's attention takes."""
        return 2 * tokens * self.layer.width

    def relate(self, tokens: int, asking: int) -> int:
        """Counts the first pass of a question-aware budget: a prompt up to the middle layer's attention.

        Args:
            tokens: of the prompt.
            asking: tokens of the question, whose attention is read.
        """
        below = self.depth // 2 * self.layer.run(tokens)
        made = self.layer.projections - self.query  # queries, keys and values; the output's are as many as the queries'
        return below + 2 * tokens * made + asking * self.attend(tokens)


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear)
