"""How tests open pages and read them."""

from collections.abc import Callable

from streamlit.testing.v1 import AppTest

Open = Callable[..., AppTest]


def text_of(app: AppTest) -> str:
    """Everything a person could read on the page outside of tables and charts."""
    kinds = ("title", "header", "subheader", "markdown", "caption", "info", "warning", "error",
             "success")  # fmt: skip
    return "\n".join(str(item.value) for kind in kinds for item in app.get(kind)).replace("\\", "")
