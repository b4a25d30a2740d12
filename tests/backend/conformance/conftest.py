"""How many cases the API is asked, and how many it was."""

from collections import Counter

import pytest

CASES_PER_OPERATION = 6
asked: pytest.StashKey[Counter[str]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--api-cases",
        type=int,
        default=CASES_PER_OPERATION,
        help="requests that schemathesis makes to each operation of the API",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[asked] = Counter()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    answers = terminalreporter.config.stash[asked]
    if answers:
        shares = ", ".join(f"{status}: {number}" for status, number in sorted(answers.items()))
        terminalreporter.write_line(f"{answers.total()} requests to the API ({shares})")


@pytest.fixture
def answers(pytestconfig: pytest.Config) -> Counter[str]:
    """Answers of the whole session, by status."""
    return pytestconfig.stash[asked]


@pytest.fixture
def num_cases(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.getoption("--api-cases"))
