"""The reference page of all strategies, made from the contracts.

`python -m backend.strategies.reference docs/reference/strategies.md` writes it anew.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backend.contracts.strategies import Capabilities, StrategyInfo, describe_strategies

_INTRODUCTION = """# Strategies

Made from `backend/contracts/strategies.py` and `backend/contracts/params/`; change those, not this
page. Everything here is also in
`GET /api/v1/strategies` and in the forms of the dashboard.

What may differ between clients: their LoRA **rank**, the **depth** and **width** of their base
models, their **task**. A strategy that needs equal ones either refuses a federation, with the
reason, or runs inside groups of equal clients (`group_by: architecture`)."""
_LIMITS = (
    ("minimum", "≥"),
    ("exclusiveMinimum", ">"),
    ("maximum", "≤"),
    ("exclusiveMaximum", "<"),
)


def markdown() -> str:
    """The whole page."""
    infos = describe_strategies()
    parts = [_INTRODUCTION, overview(infos), *map(_section, infos)]
    return "\n\n".join(parts) + "\n"


def overview(infos: list[StrategyInfo]) -> str:
    """One row for each strategy: what may differ, and what leaves a client."""
    lines = ["| strategy | may differ | leaves a client |", "|---|---|---|"]
    lines += [
        f"| [{info.title}](#{_anchor(info.title)}) (`{info.name.value}`) "
        f"| {may_differ(info.capabilities)} | {info.shares} |"
        for info in infos
    ]
    return "\n".join(lines)


def may_differ(capabilities: Capabilities) -> str:
    """`rank, depth, width, task`, or what of it a strategy allows."""
    traits = ("rank", "depth", "width", "task")
    return ", ".join(trait for trait in traits if getattr(capabilities, trait)) or "nothing"


def _section(info: StrategyInfo) -> str:
    parts = [f"## {info.title}", info.summary]
    if info.reference:
        parts.append(f"Source: {info.reference}.")
    schema: Mapping[str, Any] = info.params_schema
    properties = {
        name: prop for name, prop in schema.get("properties", {}).items() if "const" not in prop
    }
    if properties:
        lines = ["| parameter | default | allowed | meaning |", "|---|---|---|---|"]
        lines += [_row(name, prop) for name, prop in properties.items()]
        parts.append("\n".join(lines))
    else:
        parts.append("No parameters.")
    return "\n\n".join(parts)


def _row(name: str, prop: Mapping[str, Any]) -> str:
    default = prop.get("default")
    shown = "empty" if default is None else f"`{json.dumps(default)}`"
    meaning = " ".join(str(prop.get("description", "")).split()).replace("|", "\\|")
    title = prop.get("title", "")
    return f"| `{name}` | {shown} | {_allowed(prop)} | {title}. {meaning} |"


def _allowed(prop: Mapping[str, Any]) -> str:
    options = prop.get("anyOf", [prop])
    words = ["empty" for option in options if option.get("type") == "null"]
    for option in options:
        if "enum" in option:
            words.append(", ".join(f"`{choice}`" for choice in option["enum"]))
        elif option.get("type") != "null":
            limits = [f"{sign} {option[key]:g}" for key, sign in _LIMITS if key in option]
            words.append(" ".join([str(option.get("type", "")), ", ".join(limits)]).strip())
    return " or ".join(reversed(words))


def _anchor(title: str) -> str:
    kept = "".join(sign for sign in title.lower() if sign.isalnum() or sign in "- _")
    return kept.replace(" ", "-")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown())
