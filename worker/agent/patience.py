"""Waiting for a platform that is away, and noticing when to stop."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from backend.api_client import ApiError, ApiUnreachableError
from worker.agent.errors import AgentStoppingError

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 30.0
_TOO_MANY_REQUESTS = 429


def is_passing(error: ApiError) -> bool:
    """True for refusals that say nothing about the request: restarts, proxies, overload."""
    return error.status >= 500 or error.status == _TOO_MANY_REQUESTS


def patiently(stop: threading.Event, call: Callable[[], T]) -> T:
    """The answer of a call that may be repeated, however long the platform is away.

    Waits double from `FIRST_WAIT_SECONDS` up to `LONGEST_WAIT_SECONDS`.

    Raises:
        AgentStoppingError: `stop` was set before there was an answer.
        ApiError: the platform refused.
    """
    wait = FIRST_WAIT_SECONDS
    while True:
        try:
            return call()
        except ApiUnreachableError as error:
            logger.warning("%s Trying again in %g s.", error, wait)
        except ApiError as error:
            if not is_passing(error):
                raise
            logger.warning("The platform is in trouble (%s). Trying again in %g s.", error, wait)
        if stop.wait(wait):
            raise AgentStoppingError
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)
