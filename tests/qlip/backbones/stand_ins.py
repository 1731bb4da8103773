"""Stand-ins for the models of timm and open_clip, which need not be installed: the names of classes, and attributes."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from tests.weights import randomise

WIDTH = 32


class Block(nn.Module):
    """A layer that counts its calls; its tokens see no others, so that it needs no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.attn, self.calls = nn.Linear(WIDTH, WIDTH), SimpleNamespace(num_heads=2), 0

    def forward(self, x, attn_mask=None):
        self.calls += 1
        return x + self.linear(x)


class PatchDropout(nn.Module):
    """Both libraries' module that leaves out patches in training."""

    def __init__(self, prob: float) -> None:
        super().__init__()
        self.prob = prob


class TimmTransformer(nn.Module):
    """Has the attributes of timm's VisionTransformer."""

    def __init__(self, prefix: int = 1, **embed) -> None:
        super().__init__()
        self.patch_embed, convolution = nn.Module(), nn.Conv2d(3, WIDTH, 14, 14)
        parts = {"patch_size": (14, 14), "grid_size": (4, 4), "proj": convolution, "norm": nn.Identity(), **embed}
        for part, value in parts.items():
            setattr(self.patch_embed, part, value)
        self.embed_dim, self.num_prefix_tokens, self.no_embed_class = WIDTH, prefix, False
        self.cls_token, self.reg_token = nn.Parameter(torch.zeros(1, 1, WIDTH)), None
        self.pos_embed = nn.Parameter(torch.zeros(1, 16 + prefix, WIDTH))
        self.blocks, self.norm_pre, self.norm = nn.ModuleList([Block()]), nn.Identity(), nn.Identity()
        self.pos_drop, self.patch_drop = nn.Dropout(0.0), nn.Identity()
        self.global_pool, self.attn_pool, self.grad_checkpointing = "token", None, False

    def set_grad_checkpointing(self, enable=True):
        self.grad_checkpointing = enable

    def forward_head(self, x):
        return x[:, 0]


class OpenCLIPTransformer(nn.Module):
    """Has the attributes of open_clip's VisionTransformer."""

    def __init__(self, output_tokens: bool = False, grid_size=(4, 4), patch_size=(14, 14), pool_type="tok") -> None:
        super().__init__()
        self.output_tokens, self.grid_size, self.patch_size = output_tokens, grid_size, patch_size
        self.pool_type, self.attn_pool = pool_type, None
        self.conv1, self.ln_pre = nn.Conv2d(3, WIDTH, 14, 14, bias=False), nn.Identity()
        self.patch_dropout: nn.Module = nn.Identity()
        self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        self.positional_embedding = nn.Parameter(torch.zeros(17, WIDTH))
        self.proj = nn.Parameter(torch.zeros(WIDTH, 8))
        self.transformer = nn.Module()
        self.transformer.resblocks, self.transformer.grad_checkpointing = nn.ModuleList([Block()]), False

    def set_grad_checkpointing(self, enable=True):
        self.transformer.grad_checkpointing = enable

    def _pool(self, x):
        return x[:, 0], x[:, 1:]


class CLIP(nn.Module):
    """A model of open_clip around a vision transformer."""

    def __init__(self, visual: nn.Module, **preprocessing) -> None:
        super().__init__()
        self.visual = visual
        vars(visual).update(preprocessing)

    def encode_image(self, image):
        return getattr(self.visual, "trunk", self.visual)(image)


class TimmModel(nn.Module):
    """open_clip's wrapper of a timm model."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk


TimmTransformer.__module__, TimmTransformer.__name__ = "timm.models.vision_transformer", "VisionTransformer"
OpenCLIPTransformer.__module__, OpenCLIPTransformer.__name__ = "open_clip.transformer", "VisionTransformer"
CLIP.__module__ = TimmModel.__module__ = "open_clip.model"


def make_timm(name: str = "VisionTransformer", prefix: int = 1, **embed) -> nn.Module:
    """Makes a stand-in for timm's VisionTransformer, or for a class that follows it."""
    kind = TimmTransformer
    if name != kind.__name__:
        kind = type(name, (kind,), {"__module__": "timm.models.deit"})
    return randomise(kind(prefix, **embed))


def make_open_clip(**options) -> nn.Module:
    """Makes a stand-in for open_clip's VisionTransformer."""
    return randomise(OpenCLIPTransformer(**options))


def wrap_timm(**preprocessing) -> nn.Module:
    """Makes a stand-in for an open_clip model around a timm model."""
    return CLIP(TimmModel(make_timm()), **preprocessing)
