import os
import socket
from pathlib import Path

import pytest

from backend.local.errors import FolderInUseError, PortInUseError
from backend.local.folders import hold_folder
from backend.local.ports import free_port, prefer_port, require_port


@pytest.fixture
def taken_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_folder_belongs_to_one_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    with (
        hold_folder(folder),
        pytest.raises(
            FolderInUseError, match=f"process {os.getpid()} uses {folder}.*FEDBRAID_HOME"
        ),
        hold_folder(folder),
    ):
        pass
    with hold_folder(folder):
        assert folder.stat().st_mode & 0o077 == 0


def test_a_taken_port_is_refused_with_the_remedy(taken_port: int) -> None:
    with pytest.raises(PortInUseError, match=rf"127.0.0.1:{taken_port}.*FEDBRAID_API_PORT"):
        require_port("127.0.0.1", taken_port, "FEDBRAID_API_PORT")


def test_a_preferred_port_gives_way(taken_port: int) -> None:
    chosen = prefer_port("127.0.0.1", taken_port, "FEDBRAID_API_PORT")
    assert chosen not in {0, taken_port}
    assert prefer_port("127.0.0.1", chosen, "FEDBRAID_API_PORT") == chosen


def test_zero_is_any_free_port() -> None:
    assert require_port("127.0.0.1", 0, "FEDBRAID_API_PORT") > 0


def test_a_drawn_port_is_none_of_those_to_avoid() -> None:
    odd = range(1, 65536, 2)
    assert all(free_port("127.0.0.1", odd) % 2 == 0 for _ in range(20))
