"""The code of docs/how-to/use-an-adapter.md, as a reader would run it."""

import re
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "use-an-adapter.md"
BY_EMBEDDINGS = "Text encoders that classify by their embeddings"
BY_OWN_HEAD = "Classifiers with their own head"

Classify = Callable[[Sequence[Any]], list[str]]


def run_documented(heading: str, base: Path, adapter: Path, folder: Path) -> dict[str, Any]:
    """What the page's code under a heading defines, for this base model and this adapter.

    Args:
        heading: of the page.
        base: replaces BASE_MODEL.
        adapter: replaces ADAPTER.
        folder: where the code is written before it is run.
    """
    section = PAGE.read_text(encoding="utf-8").split(f"## {heading}\n")[1]
    code = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)[0]
    script = folder / "documented.py"
    script.write_text(code.replace("BASE_MODEL", str(base)).replace("ADAPTER", str(adapter)))
    return runpy.run_path(str(script))


def documented_classify(heading: str, base: Path, adapter: Path, folder: Path) -> Classify:
    """The function `classify` of the page."""
    return cast(Classify, run_documented(heading, base, adapter, folder)["classify"])
