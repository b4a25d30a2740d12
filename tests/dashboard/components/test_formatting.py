from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from dashboard.components import formatting as f

NOON = datetime(2026, 7, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB")],
)
def test_bytes(value: float, text: str) -> None:
    assert f.bytes_text(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59.9, "59 s"), (61, "1 min 01 s"), (3720, "1 h 02 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert f.duration_text(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-9, "just now"), (4, "just now"), (5, "5 s ago"), (119, "1 min ago"), (7200, "2 h ago"),
     (90000, "1 d ago")],
)  # fmt: skip
def test_ago(seconds: float, text: str) -> None:
    assert f.ago_text(NOON - timedelta(seconds=seconds), NOON) == text


def test_never_seen() -> None:
    assert f.ago_text(None, NOON) == "never"


def test_times_are_in_the_viewers_zone() -> None:
    zone = f.zone_of("Europe/Berlin")
    assert zone == ZoneInfo("Europe/Berlin")
    assert f.moment_text(NOON, zone) == "01 Jul 2026, 14:00 CEST"
    assert f.clock_text(NOON, zone) == "14:00:00"


@pytest.mark.parametrize("name", [None, "", "Not/AZone", "../etc/passwd"])
def test_an_unknown_zone_is_utc(name: str | None) -> None:
    assert f.moment_text(NOON, f.zone_of(name)) == "01 Jul 2026, 12:00 UTC"


def test_points_and_percent() -> None:
    assert f.points_text(-0.0123) == "-1.2 pp"
    assert f.percent_text(None) == f.NOTHING
    assert f.percent_text(0.5) == "50.0 %"


def test_markdown_loses_its_power() -> None:
    assert f.escape("a*b_c [x](y)\n$z$ :red[w] <b>") == (
        r"a\*b\_c \[x\]\(y\) \$z\$ \:red\[w\] \<b\>"
    )
