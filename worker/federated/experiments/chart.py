"""A picture of one setting as SVG: every seed a dot, the mean a bar with its interval."""

import math
import statistics
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

from backend.contracts.evidence import interval

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 760, 30, 210, 70, 44, 40
COLOURS = {"h2tune": "#0f766e", "control": "#b45309", "alone": "#64748b"}


def write_chart(path: Path, title: str, means: Mapping[str, Mapping[int, float]]) -> None:
    """Writes one row per arm.

    Args:
        path: of the SVG.
        title: above the picture.
        means: accuracy by arm and seed, in [0, 1]; at least one arm with one seed.
    """
    values = [value for by_seed in means.values() for value in by_seed.values()]
    low = math.floor(min(values) * 20) / 20
    high = max(math.ceil(max(values) * 20) / 20, low + 0.05)

    def x(value: float) -> float:
        share = (min(max(value, low), high) - low) / (high - low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    height = TOP + ROW * len(means) + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="system-ui, sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="24" font-size="15" fill="#0f172a">{escape(title)}</text>',
    ]
    for step in range(round((high - low) * 20) + 1):
        at = low + step / 20
        parts += [
            f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{TOP - 8}" y2="{height - BOTTOM}" '
            'stroke="#e2e8f0"/>',
            f'<text x="{x(at):.1f}" y="{height - BOTTOM + 18}" text-anchor="middle" '
            f'fill="#475569">{at:.2f}</text>',
        ]
    for number, (name, by_seed) in enumerate(means.items()):
        parts += _row(name, by_seed, TOP + ROW * number + ROW / 2, x)
    parts.append("</svg>")
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _row(
    name: str, by_seed: Mapping[int, float], y: float, x: Callable[[float], float]
) -> list[str]:
    colour = _colour(name)
    found = interval(list(by_seed.values()))
    parts = [
        f'<text x="{LEFT - 12}" y="{y + 4:.1f}" text-anchor="end" fill="#0f172a">'
        f"{escape(name)}</text>"
    ]
    if found.half_width is not None:
        first, last = x(found.mean - found.half_width), x(found.mean + found.half_width)
        parts.append(
            f'<line x1="{first:.1f}" x2="{last:.1f}" y1="{y:.1f}" y2="{y:.1f}" '
            f'stroke="{colour}" stroke-width="8" stroke-opacity="0.25" stroke-linecap="round"/>'
        )
    parts += [
        f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="3" fill="{colour}" fill-opacity="0.55"/>'
        for value in by_seed.values()
    ]
    mean = statistics.fmean(by_seed.values())
    parts += [
        f'<line x1="{x(mean):.1f}" x2="{x(mean):.1f}" y1="{y - 9:.1f}" y2="{y + 9:.1f}" '
        f'stroke="{colour}" stroke-width="3"/>',
        f'<text x="{WIDTH - RIGHT + 12}" y="{y + 4:.1f}" fill="{colour}">{mean:.3f}</text>',
    ]
    return parts


def _colour(name: str) -> str:
    if name.endswith(("permuted", "noise")):
        return COLOURS["control"]
    return COLOURS["h2tune" if name.startswith("h2tune") else "alone"]
