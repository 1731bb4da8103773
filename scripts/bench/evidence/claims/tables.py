"""README's table of results and RESULTS' table of claims, from the file of claims."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.bench.evidence.answering.scene_sets import MEASURES
from scripts.bench.evidence.answering.variants import CLIP, SHIPPED
from scripts.bench.evidence.claims.published import Claim

SCENES = {
    "base": "base: 112 px, objects 6-48 px",
    "6-12 px": "448 px, objects 6-12 px",
    "12-24 px": "objects 12-24 px",
    "24-48 px": "objects 24-48 px",
    "48-96 px": "objects 48-96 px",
    "96-192 px": "objects 96-192 px",
}
"""Sets of scenes as README names them."""
WAYS = {SHIPPED.name: "QLIP", "native grid, 1024 tokens": "uniform, native size"}
"""Ways to encode images that README names otherwise."""


def headline_table(claims: Sequence[Claim]) -> str:
    """Formats README's table; QLIP's V* is bold where its interval is above CLIP's, for the shipped checkpoint."""
    rows: dict[tuple[str, str], dict[str, Claim]] = {}
    for claim in claims:
        rows.setdefault((claim.set, claim.way), {})[claim.measure] = claim
    lines = [f"| scenes | vision input | tokens | {' | '.join(MEASURES)} |", "|---" * (3 + len(MEASURES)) + "|"]
    seen = None
    for (name, way), measures in rows.items():
        values = [f"{measures[measure].value:.1f}" if measure in measures else "" for measure in MEASURES]
        label, clip = WAYS.get(way, way), rows.get((name, CLIP.name), {})
        if way == SHIPPED.name and measures["V*"].shipped.low > clip["V*"].shipped.high:
            label, values[0] = f"**{label}**", f"**{values[0]}**"
        scenes = "" if name == seen else f" {SCENES.get(name, name)}"
        lines.append(f"|{scenes} | {label} | {next(iter(measures.values())).tokens:.0f} | {' | '.join(values)} |")
        seen = name
    lines.append("| LLaVA-1.5 7B, 13B | | not measured | | | |")
    return "\n".join(lines)


def claims_table(claims: Sequence[Claim]) -> str:
    """Formats every claim with what reproduces it, and the commands below."""
    commands = list(dict.fromkeys(claim.command for claim in claims))
    lines = [
        "| claim | published | of the shipped checkpoint | scenes, series | date | command |",
        "|---|---|---|---|---|---|",
    ]
    for claim in claims:
        interval = "interval not kept" if claim.low is None else f"[{claim.low:.1f}, {claim.high:.1f}]"
        own = claim.shipped
        lines.append(
            f"| {claim.text} | {claim.value:.1f} {interval} | {own.mean:.1f} [{own.low:.1f}, {own.high:.1f}]"
            f" | {sum(claim.scenes)} of {claim.seed} | {claim.date} | {commands.index(claim.command) + 1} |"
        )
    lines += ["", *(f"{number}. `{text}`" for number, text in enumerate(commands, start=1))]
    return "\n".join(lines)


def claim_parts(claims: Sequence[Claim]) -> dict[str, str]:
    """Formats the parts of the pages that are made from claims, by the names of their marks."""
    return {"claims: headline": headline_table(claims), "claims: all": claims_table(claims)}
