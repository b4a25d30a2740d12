"""Numbers, times and names as people read them."""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

NOTHING = "–"
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~$:&-])")


def escape(text: str) -> str:
    """Text from people or programs, safe to stand inside Markdown."""
    return _MARKDOWN.sub(r"\\\1", text.replace("\n", " "))


def byte_unit(largest: float) -> tuple[str, int]:
    """The unit in which `largest` bytes read well, and how many bytes it has."""
    power = 0
    while largest >= 1024 and power < len(BYTE_UNITS) - 1:
        largest /= 1024
        power += 1
    return BYTE_UNITS[power], 1024**power


def bytes_text(value: float) -> str:
    """`1536` -> `1.5 KiB`."""
    unit, size = byte_unit(value)
    return f"{value / size:.0f} {unit}" if size == 1 else f"{value / size:.1f} {unit}"


def counted(number: int, word: str) -> str:
    """`1 round`, `2 rounds`."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def percent_text(share: float | None) -> str:
    """`0.1234` -> `12.3 %`."""
    return NOTHING if share is None else f"{100 * share:.1f} %"


def epsilon_text(epsilon: float) -> str:
    """A privacy loss in three digits, such as `0.518` or `38.2`; large ones as whole numbers."""
    return f"{epsilon:,.0f}" if epsilon >= 100 else f"{epsilon:.3g}"


def points_text(difference: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f} pp"


def duration_text(duration: timedelta) -> str:
    """`1 h 02 min`, `3 min 05 s` or `12 s`."""
    seconds = max(0, int(duration.total_seconds()))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def ago_text(moment: datetime | None, now: datetime) -> str:
    """How long ago something was; `never` for None."""
    if moment is None:
        return "never"
    seconds = (now - moment).total_seconds()
    if seconds < 5:
        return "just now"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


def zone_of(name: str | None) -> tzinfo:
    """The time zone of this name; UTC when the viewer's browser named none that is known."""
    if not name:
        return UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        return UTC


def moment_text(moment: datetime | None, zone: tzinfo) -> str:
    """Date and time in a zone, with the zone's short name."""
    if moment is None:
        return NOTHING
    return moment.astimezone(zone).strftime("%d %b %Y, %H:%M %Z")


def clock_text(moment: datetime, zone: tzinfo) -> str:
    """Time of day to the second, in a zone."""
    return moment.astimezone(zone).strftime("%H:%M:%S")
