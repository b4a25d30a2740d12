"""How a gain changes with what settings vary: `python -m worker.federated.experiments.curves`.

Settings say in their names what they vary, as `examples=64`, or `examples=32,clients=3` for a point
that lies on several curves. Every quantity gets a panel.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from backend.contracts.evidence import Interval, paired
from worker.federated.experiments.records import Record, read_records
from worker.federated.experiments.report import mean_by_seed

PANEL, HEIGHT, LEFT, TOP, BOTTOM = 250, 240, 52, 44, 48
COLOURS = ("#0f766e", "#b45309")

Curve = Mapping[float, Interval]
"""The paired gain by the value of the quantity that was varied."""


def main() -> None:
    """Writes the picture, and prints the numbers as a Markdown table."""
    options = _options()
    records = read_records(options.results)
    found = {arm: curves(records, arm, options.against) for arm in options.arms}
    options.out.write_text(picture(found, options.against), encoding="utf-8")
    sys.stdout.write(table(found) + "\n")


def curves(records: Sequence[Record], arm: str, against: str) -> dict[str, Curve]:
    """By quantity, the gain of one arm over another where both were run, paired by seed.

    Args:
        records: of settings named as the module says; others are left out.
        arm: whose gain.
        against: the arm without sharing.
    """
    found: dict[str, dict[float, Interval]] = {}
    for setting in dict.fromkeys(line.setting for line in records):
        gain = paired(mean_by_seed(records, setting, arm), mean_by_seed(records, setting, against))
        if gain is None:
            continue
        for part in setting.split(","):
            quantity, is_given, value = part.partition("=")
            if is_given:
                found.setdefault(quantity, {})[float(value)] = gain
    return {quantity: dict(sorted(points.items())) for quantity, points in found.items()}


def table(found: Mapping[str, Mapping[str, Curve]]) -> str:
    """A row per quantity and value, a column per arm."""
    rows = [f"| | {' | '.join(found)} |", f"|---|{'---|' * len(found)}"]
    places = dict.fromkeys(
        (quantity, value) for arm in found.values() for quantity in arm for value in arm[quantity]
    )
    for quantity, value in places:
        gains = [arm.get(quantity, {}).get(value) for arm in found.values()]
        rows.append(
            f"| {quantity} {value:g} | {' | '.join('' if g is None else str(g) for g in gains)} |"
        )
    return "\n".join(rows)


def picture(found: Mapping[str, Mapping[str, Curve]], against: str) -> str:
    """An SVG with a panel per quantity; the horizontal axes are logarithmic.

    Args:
        found: as `curves` gives it, by one or two arms; at least one point, values above 0.
        against: the arm that the gains are over.
    """
    quantities = list(dict.fromkeys(quantity for arm in found.values() for quantity in arm))
    width = LEFT + PANEL * len(quantities)
    scale = _Scale.of(
        [g for arm in found.values() for curve in arm.values() for g in curve.values()]
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 24}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{HEIGHT + 24}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14" fill="#0f172a">Gain in accuracy over '
        f"{escape(against)}, with 95 % intervals</text>",
        *scale.lines(width),
    ]
    for number, quantity in enumerate(quantities):
        by_arm = [arm.get(quantity, {}) for arm in found.values()]
        parts += _panel(quantity, by_arm, LEFT + PANEL * number + 24, scale)
    for number, (arm_name, colour) in enumerate(zip(found, COLOURS, strict=False)):
        at = LEFT + 160 * number
        parts += [
            f'<circle cx="{at + 5}" cy="{HEIGHT + 8}" r="4" fill="{colour}"/>',
            f'<text x="{at + 14}" y="{HEIGHT + 12}" fill="#0f172a">{escape(arm_name)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True, slots=True)
class _Scale:
    """The vertical axis, common to all panels, in tenths."""

    low: float
    high: float

    @classmethod
    def of(cls, gains: Sequence[Interval]) -> "_Scale":
        ends = [gain.mean + side * (gain.half_width or 0) for gain in gains for side in (-1, 1)]
        return cls(math.floor(min(0, *ends) * 10) / 10, math.ceil(max(0.1, *ends) * 10) / 10)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)

    def lines(self, width: int) -> list[str]:
        parts = []
        for step in range(round((self.high - self.low) * 10) + 1):
            at = self.low + step / 10
            y = self.y(at)
            colour = "#64748b" if abs(at) < 1e-9 else "#e2e8f0"
            parts += [
                f'<line x1="{LEFT}" x2="{width - 12}" y1="{y:.1f}" y2="{y:.1f}" '
                f'stroke="{colour}"/>',
                f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#475569">'
                f"{at:+.1f}</text>",
            ]
        return parts


def _panel(quantity: str, by_arm: Sequence[Curve], left: int, scale: _Scale) -> list[str]:
    values = sorted({value for curve in by_arm for value in curve})
    first, last = math.log(values[0]), math.log(values[-1])
    width, bottom = PANEL - 60, HEIGHT - BOTTOM
    x = {
        value: left + (math.log(value) - first) / ((last - first) or 1) * width for value in values
    }
    parts = [
        f'<text x="{x[value]:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#475569">'
        f"{value:g}</text>"
        for value in values
    ]
    parts.append(
        f'<text x="{left + width / 2:.1f}" y="{bottom + 34}" text-anchor="middle" '
        f'fill="#0f172a">{escape(quantity)}</text>'
    )
    for curve, colour in zip(by_arm, COLOURS, strict=False):
        line = " ".join(f"{x[value]:.1f},{scale.y(gain.mean):.1f}" for value, gain in curve.items())
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        for value, gain in curve.items():
            half = gain.half_width or 0
            parts += [
                f'<line x1="{x[value]:.1f}" x2="{x[value]:.1f}" '
                f'y1="{scale.y(gain.mean - half):.1f}" y2="{scale.y(gain.mean + half):.1f}" '
                f'stroke="{colour}" stroke-width="6" stroke-opacity="0.25"/>',
                f'<circle cx="{x[value]:.1f}" cy="{scale.y(gain.mean):.1f}" r="3.5" '
                f'fill="{colour}"/>',
            ]
    return parts


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draws how a gain changes with the setting.")
    parser.add_argument("results", type=Path, help="results.csv of an experiment")
    parser.add_argument("--out", type=Path, required=True, help="the picture (SVG)")
    parser.add_argument(
        "--arms", type=lambda text: text.split(","), default=["h2tune"], help="one or two, by comma"
    )
    parser.add_argument("--against", default="local_only", help="the arm without sharing")
    return parser.parse_args()


if __name__ == "__main__":
    main()
