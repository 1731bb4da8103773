"""Quadtrees and patches for models: torch.compile runs these as they are, and compiles what surrounds them.

numpy cuts a data-dependent number of leaves, which no compiler can trace. The wrappers are in a separate file because
`torch.compiler` imports the compiler, which image-preparing processes need not load.
"""

from __future__ import annotations

import torch

from qlip import patches, quadtree, split_cells

partition_as = torch.compiler.disable(quadtree.partition_as)
extract_patches = torch.compiler.disable(patches.extract_patches)
native_cut = torch.compiler.disable(patches.native_cut)
add_split_cells = torch.compiler.disable(split_cells.add_split_cells)
