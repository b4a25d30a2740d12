"""A form from a JSON Schema, so that a new strategy needs no new page."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import streamlit as st

from dashboard.components.formatting import escape

COLUMNS = 3
MAX_INTEGER = 2**53 - 1  # what a browser counts exactly
MAX_NUMBER = 1e300
EMPTY = "automatic"  # what an empty field of a nullable property says


@dataclass(frozen=True, slots=True)
class FormField:
    """One property of a schema, with what a widget needs."""

    name: str
    title: str
    help: str
    kind: str  # enum, boolean, integer, number or string
    nullable: bool
    default: Any
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None


def form_fields(schema: Mapping[str, Any]) -> list[FormField]:
    """The editable properties of a schema, in its order; constants are left out."""
    return [
        _field(name, prop)
        for name, prop in schema.get("properties", {}).items()
        if "const" not in prop
    ]


def schema_form(schema: Mapping[str, Any], key: str, errors: Mapping[str, str]) -> dict[str, Any]:
    """Show the form and give its values.

    Args:
        schema: JSON Schema of a flat object.
        key: prefix of the widgets' keys.
        errors: message by property name, shown below its widget.
    """
    values: dict[str, Any] = {}
    fields = form_fields(schema)
    for start in range(0, len(fields), COLUMNS):
        columns = st.columns(COLUMNS)
        for column, field in zip(columns, fields[start : start + COLUMNS], strict=False):
            with column:
                values[field.name] = _widget(field, f"{key}.{field.name}")
                if field.name in errors:
                    st.caption(f":red[:material/error: {escape(errors[field.name])}]")
    return values


def _field(name: str, prop: Mapping[str, Any]) -> FormField:
    options = prop.get("anyOf", [prop])
    typed = next(option for option in options if option.get("type") != "null")
    integer = typed.get("type") == "integer"
    return FormField(
        name=name,
        title=prop.get("title") or name.replace("_", " ").capitalize(),
        help=_help(prop.get("description", ""), typed),
        kind="enum" if "enum" in typed else str(typed["type"]),
        nullable=any(option.get("type") == "null" for option in options),
        default=prop.get("default"),
        choices=tuple(typed.get("enum", ())),
        minimum=_bound(typed.get("minimum"), typed.get("exclusiveMinimum"), 1 if integer else 0),
        maximum=_bound(typed.get("maximum"), typed.get("exclusiveMaximum"), -1 if integer else 0),
    )


def _bound(inclusive: float | None, exclusive: float | None, step: int) -> float | None:
    """The outermost value a number input offers; an excluded limit is refused on sending."""
    if inclusive is not None or exclusive is None:
        return inclusive
    return exclusive + step


def _help(description: str, typed: Mapping[str, Any]) -> str:
    limits = [
        f"{words} {typed[name]:g}"
        for name, words in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "more than"),
            ("maximum", "at most"),
            ("exclusiveMaximum", "less than"),
        )
        if name in typed
    ]
    parts = [description, f"Allowed: {', '.join(limits)}." if limits else ""]
    return escape(" ".join(part for part in parts if part))


def _widget(field: FormField, key: str) -> Any:
    shown_help = field.help or None
    if field.kind == "enum":
        index = field.choices.index(field.default) if field.default in field.choices else 0
        return st.selectbox(field.title, field.choices, index=index, help=shown_help, key=key)
    if field.kind == "boolean":
        st.space("xsmall")
        return st.toggle(field.title, value=bool(field.default), help=shown_help, key=key)
    if field.kind == "integer":
        return _integer_widget(field, key)
    if field.kind == "number":
        return _number_widget(field, key)
    return st.text_input(field.title, value=field.default or "", help=shown_help, key=key)


def _integer_widget(field: FormField, key: str) -> int | None:
    default: int | None = None if field.default is None else int(field.default)
    return st.number_input(
        field.title,
        min_value=-MAX_INTEGER if field.minimum is None else int(field.minimum),
        max_value=MAX_INTEGER if field.maximum is None else int(field.maximum),
        value=default,
        step=1,
        placeholder=EMPTY if field.nullable else None,
        help=field.help or None,
        key=key,
    )


def _number_widget(field: FormField, key: str) -> float | None:
    default: float | None = None if field.default is None else float(field.default)
    return st.number_input(
        field.title,
        min_value=-MAX_NUMBER if field.minimum is None else float(field.minimum),
        max_value=MAX_NUMBER if field.maximum is None else float(field.maximum),
        value=default,
        step=_step(field.default),
        format="%g",
        placeholder=EMPTY if field.nullable else None,
        help=field.help or None,
        key=key,
    )


def _step(default: float | None) -> float:
    """A tenth of the default's leading digit's place: 0.003 steps by 0.001, 0.5 by 0.1."""
    if not default:
        return 0.1
    return float(10.0 ** math.floor(math.log10(abs(default)) - (1 if default == 1 else 0)))
