"""Packages that only some tasks need."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from worker.federated.errors import InvalidConfigError


def optional_module(module: str, purpose: str) -> Any:
    """A module of a package that need not be installed.

    Args:
        module: such as `pyarrow.parquet`.
        purpose: who needs it, for the message, in the plural.

    Raises:
        InvalidConfigError: the package is not installed.
    """
    package = module.partition(".")[0]
    if find_spec(package) is None:
        install = {"PIL": "pillow", "sklearn": "scikit-learn"}.get(package, package)
        raise InvalidConfigError(f"{purpose} need the package {install!r}: pip install {install}.")
    return import_module(module)
