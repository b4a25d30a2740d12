"""The documentation: every link works, the index is whole, the reference is up to date."""

import re
from pathlib import Path

import pytest

from backend.strategies.reference import markdown

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs" / "README.md"
REFERENCE = ROOT / "docs" / "reference" / "strategies.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)


def links_of(page: Path) -> list[tuple[Path, str]]:
    """(file, anchor) of all links to files; an empty anchor means the whole page."""
    found = []
    for target in _LINK.findall(_FENCE.sub("", page.read_text())):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            found.append(((page.parent / path).resolve() if path else page, anchor))
    return found


def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for path, anchor in links_of(page):
        assert path.exists(), f"{page.name} links to {path}, which is not there"
        if anchor and path.suffix == ".md":
            assert anchor in anchors_of(path), f"{page.name}: {path.name} has no heading {anchor}"


def test_the_index_names_every_page() -> None:
    named = {path for path, _ in links_of(INDEX)}
    missing = {page for page in PAGES if page.is_relative_to(INDEX.parent)} - named - {INDEX}
    assert not missing, "name them in docs/README.md"


def test_the_reference_of_strategies_is_up_to_date() -> None:
    assert REFERENCE.read_text() == markdown(), (
        "write it anew: python -m backend.strategies.reference docs/reference/strategies.md"
    )
