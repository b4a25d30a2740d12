"""Probe texts: what is accepted, what is refused and with which words, and how they are stored."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.contracts.probe_sets import (
    JSON_LINES,
    MAX_BODY_BYTES,
    MAX_CHARACTERS,
    MAX_TEXTS,
    MEDIA_TYPES,
    MIN_TEXTS,
    PLAIN_TEXT,
    ProbeSetError,
    decode_probe_set,
    encode_probe_set,
    parse_probe_set,
)

TEXTS = [f"Sentence number {number}." for number in range(MIN_TEXTS)]


def parsed(content: bytes, media_type: str) -> list[str]:
    return parse_probe_set(io.BytesIO(content), media_type)


def test_both_formats_give_the_same_texts() -> None:
    plain = "\ufeff" + "\r\n".join(f"  {text}\t" for text in TEXTS) + "\r\n\r\n"
    rows = "".join(json.dumps({"id": 1, "text": f" {text}\n"}) + "\n\n" for text in TEXTS)
    assert parsed(plain.encode(), PLAIN_TEXT) == TEXTS
    for media_type in MEDIA_TYPES[:2]:
        assert parsed(rows.encode(), media_type) == TEXTS


def test_the_stored_form() -> None:
    texts = ["Größe in m²\u2028?", 'She said "no".', *TEXTS]
    content = encode_probe_set(texts)
    assert content.startswith('{"text": "Größe in m²\u2028?"}\n'.encode())
    assert decode_probe_set(content) == texts


@given(
    st.lists(
        st.text(min_size=1, max_size=20).map(str.strip).filter(lambda t: t and "\x00" not in t),
        min_size=MIN_TEXTS,
        max_size=MIN_TEXTS + 3,
        unique=True,
    )
)
def test_whatever_is_stored_is_read_back(texts: list[str]) -> None:
    assert decode_probe_set(encode_probe_set(texts)) == texts


def test_the_limits_themselves_pass() -> None:
    longest = ["\U0001f600" * (MAX_CHARACTERS - 6) + f"{number:06}" for number in range(MAX_TEXTS)]
    escaped = "".join(json.dumps({"text": text}) + "\n" for text in longest).encode()
    assert len(escaped) < MAX_BODY_BYTES
    assert parsed(escaped, JSON_LINES) == longest


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": " "}', r"'' is an empty text\. Leave the line out"),
        (b'{"text": "Sentence number 3. "}', r"'Sentence number 3\.' stands on line 4 already"),
        (b'{"text": 7}', r"'\{\"text\": 7\}' has no text\. Write"),
        (b'["text"]', r"'\[\"text\"\]' has no text"),
        (b"Just a sentence.", r"'Just a sentence\.' is not valid JSON.* as text/plain"),
        (b'{"text": "a\\u0000b"}', r"'a\\x00b' holds a NUL character"),
        (b'{"text": "a\\ud800b"}', r"'a\\ud800b' holds half of a character"),
        (b'{"text": "\xff"}', r"not UTF-8 \(invalid start byte\)\. Save as UTF-8"),
        (json.dumps({"text": "x" * 501}).encode(), "'x{60}' has 501 characters, and 500 are"),
    ],
)
def test_a_wrong_line_is_named(line: bytes, message: str) -> None:
    content = encode_probe_set(TEXTS) + line + b"\n"
    with pytest.raises(ProbeSetError, match=f"^Line {MIN_TEXTS + 1}: {message}") as caught:
        parsed(content, JSON_LINES)
    assert caught.value.line == MIN_TEXTS + 1
    assert caught.value.value is None or len(caught.value.value) <= 60


def test_too_few_and_too_many() -> None:
    with pytest.raises(ProbeSetError, match="has 49 texts, and 50 are the fewest") as caught:
        parsed(encode_probe_set(TEXTS[1:]), JSON_LINES)
    assert caught.value.line is None
    many = "\n".join(str(number) for number in range(MAX_TEXTS + 5)).encode()
    with pytest.raises(ProbeSetError, match=r"^Line 2001: this is text 2,001, and 2,000 are"):
        parsed(many, PLAIN_TEXT)
