from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker.agent.cli import app


def run(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    common = ["--model", "builtin:tiny_llama", "--data", "builtin:arithmetic_fill_in"]
    result = CliRunner().invoke(
        app,
        [
            *("run", *common, "--state", str(tmp_path)),
            *("--credential-file", str(tmp_path / "credential"), *arguments),
        ],
    )
    return result.exit_code, result.output


@pytest.mark.parametrize("url", ["http://platform.example", "http://10.0.0.7:8000"])
def test_a_credential_is_not_sent_in_clear(tmp_path: Path, url: str) -> None:
    code, said = run(tmp_path, "--api-url", url)
    assert code == 1
    assert "would send the client's credential in clear" in said


@pytest.mark.parametrize("url", ["platform.example", "ftp://platform.example", "https://"])
def test_what_is_no_address_is_named(tmp_path: Path, url: str) -> None:
    code, said = run(tmp_path, "--api-url", url)
    assert code == 1
    assert f"--api-url {url!r}" in said


def test_a_file_without_a_credential_is_named(tmp_path: Path) -> None:
    code, said = run(tmp_path, "--api-url", "https://platform.example")
    assert (code, "cannot be read" in said) == (1, True)
    (tmp_path / "credential").write_text("fbe_an_enrolment_key")
    code, said = run(tmp_path, "--api-url", "https://platform.example")
    assert (code, "holds no credential" in said) == (1, True)


def test_a_credential_is_never_overwritten(tmp_path: Path) -> None:
    kept = tmp_path / "credential"
    kept.write_text("fbc_precious")
    result = CliRunner().invoke(
        app,
        [
            *("register", "--api-url", "https://platform.example", "--name", "n"),
            *("--model", "builtin:tiny_llama", "--data", "builtin:arithmetic_fill_in"),
            *("--task", "fill_in", "--lora-rank", "4", "--credential-file", str(kept)),
        ],
        env={"FEDBRAID_ENROLMENT_KEY": "fbe_x"},
    )
    assert (result.exit_code, "exists already" in result.output) == (1, True)
    assert kept.read_text() == "fbc_precious"
