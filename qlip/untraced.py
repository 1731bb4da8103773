"""Quadtrees and patches for models: torch.compile runs these as they are, and compiles what surrounds them.

numpy cuts the leaves, as many as the pixels need, which no compiler can trace. Apart from what is wrapped, since
wrapping imports the compiler, which processes that only prepare images need not load.
"""

from __future__ import annotations

import torch

from qlip import patches, quadtree

partition_as = torch.compiler.disable(quadtree.partition_as)
extract_patches = torch.compiler.disable(patches.extract_patches)
native_cut = torch.compiler.disable(patches.native_cut)
