"""The compose file and its images, checked against the code, since no docker runs the tests."""

import importlib
import json
import re
import shlex
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from celery.bin.worker import worker as celery_worker
from streamlit import config as streamlit_config
from uvicorn.main import main as uvicorn_command

from backend.cli import app as fedbraid
from backend.contracts.jobs import Queue
from backend.main import create_app
from backend.settings import Settings

ROOT = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))

# What the images that are not ours read, by their documentation.
IMAGE_VARIABLES = {
    "postgres:18": {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"},
    "redis:8": {"REDIS_PASSWORD"},  # read by our own command
    "versity/versitygw:v1.8.0": {
        *("ROOT_ACCESS_KEY", "ROOT_SECRET_KEY", "VGW_BACKEND", "VGW_BACKEND_ARG", "VGW_PORT"),
        "VGW_HEALTH",
    },
}
IMAGE_PORTS = {"postgres": 5432, "redis": 6379, "objects": 7070}
CONSOLE_SCRIPTS = {script.name for script in entry_points(group="console_scripts")}


def instructions(dockerfile: Path, name: str) -> list[str]:
    joined = dockerfile.read_text().replace("\\\n", " ")
    return re.findall(rf"^{name} (.+)$", joined, flags=re.MULTILINE)


def commands() -> list[Any]:
    from_services = [pytest.param(service["command"], id=name) for name, service in OURS.items()]
    from_images = [
        pytest.param(json.loads(instructions(path, "CMD")[0]), id=path.name) for path in DOCKERFILES
    ]
    return from_services + from_images


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def known_variables() -> set[str]:
    names = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names |= set(alias.choices) if alias else {f"FEDBRAID_{name}".upper()}
    return names


def listening_port(name: str) -> int:
    if name in IMAGE_PORTS:
        return IMAGE_PORTS[name]
    command = SERVICES[name]["command"]
    return int(option(command, "--server.port" if "streamlit" in command else "--port"))


def test_every_service_of_the_platform_is_there() -> None:
    assert set(SERVICES) == {
        *("postgres", "redis", "objects", "bucket", "migrate", "api", "sweep", "dashboard"),
        *("worker-cpu", "worker-gpu", "worker-control"),
    }


def check_celery(arguments: list[str]) -> None:
    module = importlib.import_module(option(arguments, "--app"))
    assert module.app.conf.broker_url
    assert option(arguments, "--queues") in list(Queue)
    importlib.import_module(option(arguments, "--include"))
    known = {name for parameter in celery_worker.params for name in parameter.opts}
    given = arguments[arguments.index("worker") + 1 :]
    assert {name for name in given if name.startswith("--")} <= known


def check_uvicorn(arguments: list[str]) -> None:
    module_name, _, function = arguments[0].partition(":")
    assert callable(getattr(importlib.import_module(module_name), function))
    known = {
        name
        for parameter in uvicorn_command.params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }
    assert {name for name in arguments if name.startswith("--")} <= known


def check_streamlit(arguments: list[str]) -> None:
    assert arguments[0] == "run"
    assert (ROOT / arguments[1]).is_file()
    its_own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    flags = {name.removeprefix("--") for name in its_own if name.startswith("--")}
    assert flags <= set(streamlit_config.get_config_options())


def check_fedbraid(arguments: list[str]) -> None:
    (name,) = arguments
    assert name in {command.callback.__name__ for command in fedbraid.registered_commands}


CHECKS = {
    "celery": check_celery,
    "uvicorn": check_uvicorn,
    "streamlit": check_streamlit,
    "fedbraid": check_fedbraid,
}


@pytest.mark.parametrize("command", commands())
def test_every_command_exists_with_its_options(command: list[str], settings: Settings) -> None:
    program, *arguments = command
    assert program in CONSOLE_SCRIPTS
    CHECKS[program](arguments)


def test_every_queue_has_a_worker_without_a_profile() -> None:
    served = {
        option(service["command"], "--queues")
        for service in OURS.values()
        if service["command"][0] == "celery" and "profiles" not in service
    }
    assert served == set(Queue)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_copy_what_exists_and_is_sent_to_the_builder(path: Path) -> None:
    sent = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    local = [line for line in instructions(path, "COPY") if not line.startswith("--from")]
    sources = {source for line in local for source in shlex.split(line)[:-1]}
    assert sources
    assert sources <= sent
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_do_not_run_as_root_and_expose_what_they_listen_on(path: Path) -> None:
    assert instructions(path, "USER")[-1] == "fedbraid"
    (command,) = (json.loads(line) for line in instructions(path, "CMD"))
    flag = {"uvicorn": "--port", "streamlit": "--server.port"}.get(command[0])
    assert instructions(path, "EXPOSE") == ([option(command, flag)] if flag else [])


@pytest.mark.parametrize("name", OURS)
def test_builds_name_their_dockerfile_and_its_arguments(name: str) -> None:
    build = OURS[name]["build"]
    dockerfile = ROOT / build["context"] / build["dockerfile"]
    declared = {line.partition("=")[0] for line in instructions(dockerfile, "ARG")}
    assert set(build.get("args", {})) <= declared


@pytest.mark.parametrize("name", SERVICES)
def test_every_environment_variable_is_read_by_somebody(name: str) -> None:
    service = SERVICES[name]
    variables = set(service.get("environment", {}))
    if name in OURS:
        assert {v for v in variables if not v.startswith("AWS_")} <= known_variables()
    else:
        assert variables <= IMAGE_VARIABLES[service["image"]]


def test_no_secret_has_a_default_and_the_example_names_them_all() -> None:
    text = re.sub(r"(?m)^\s*#.*$", "", (ROOT / "docker-compose.yml").read_text())
    substituted = re.findall(r"(?<!\$)\$\{([^}]+)\}", text)
    assert all(re.fullmatch(r"[A-Z0-9_]+:\?.+", inner) for inner in substituted)
    example = (ROOT / "docker" / "example.env").read_text()
    named = dict(re.findall(r"(?m)^([A-Z0-9_]+)=(.*)$", example))
    assert {inner.partition(":")[0] for inner in substituted} == set(named)
    assert set(named.values()) == {""}


@pytest.mark.parametrize("name", SERVICES)
def test_urls_lead_to_services_in_a_shared_network(name: str) -> None:
    service = SERVICES[name]
    environment = service.get("environment", {})
    urls = [
        environment[v]
        for v in ("DATABASE_URL", "REDIS_URL", "AWS_ENDPOINT_URL")
        if v in environment
    ]
    urls += [option(service["command"], "--api-url")] if name == "dashboard" else []
    for url in urls:
        parts = urlsplit(re.sub(r"\$\{[^}]+\}", "secret", url))
        assert parts.hostname in SERVICES
        assert parts.port == listening_port(parts.hostname)
        assert set(service["networks"]) & set(SERVICES[parts.hostname]["networks"])


@pytest.mark.parametrize("name", [name for name in SERVICES if "ports" in SERVICES[name]])
def test_published_ports_are_listened_on_and_closed_to_the_world(name: str) -> None:
    for published in SERVICES[name]["ports"]:
        address, _, inside = published.split(":")
        assert address == "127.0.0.1"
        assert int(inside) == listening_port(name)
        host_flag = "--server.address" if name == "dashboard" else "--host"
        assert option(SERVICES[name]["command"], host_flag) == "0.0.0.0"  # noqa: S104


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_exists(name: str) -> None:
    for other, wait in SERVICES[name].get("depends_on", {}).items():
        if wait["condition"] == "service_healthy":
            assert "test" in SERVICES[other]["healthcheck"]
        else:
            assert wait["condition"] == "service_completed_successfully"
            assert SERVICES[other]["restart"] != "unless-stopped"


@pytest.mark.parametrize("name", [name for name in SERVICES if name not in {"bucket", "migrate"}])
def test_every_lasting_service_says_whether_it_is_well(name: str) -> None:
    assert "healthcheck" in SERVICES[name]


def test_health_checks_ask_for_what_the_programs_answer(settings: Settings) -> None:
    asked = re.findall(r"http://127\.0\.0\.1:(\d+)(/\S*?)'", str(SERVICES["api"]["healthcheck"]))
    assert asked == [(str(listening_port("api")), "/readyz")]
    assert "/readyz" in create_app(settings).openapi()["paths"]
    for name, service in OURS.items():
        if service["command"][0] == "celery":
            ready_file = service["environment"]["FEDBRAID_READY_FILE"]
            assert service["healthcheck"]["test"] == ["CMD", "test", "-f", ready_file], name
    objects = SERVICES["objects"]
    assert objects["environment"]["VGW_HEALTH"] in objects["healthcheck"]["test"][-1]
    assert objects["environment"]["VGW_PORT"] == f":{listening_port('objects')}"


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_few_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    if name != "postgres":  # its entry point prepares the volume and changes its user
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


def test_the_dashboard_knows_no_secret() -> None:
    assert "environment" not in SERVICES["dashboard"]
    assert "services" not in SERVICES["dashboard"]["networks"]


@pytest.mark.parametrize("name", SERVICES)
def test_volumes_and_networks_are_declared(name: str) -> None:
    service = SERVICES[name]
    assert {v.split(":")[0] for v in service.get("volumes", [])} <= set(COMPOSE["volumes"])
    assert set(service.get("networks", [])) <= set(COMPOSE["networks"])
