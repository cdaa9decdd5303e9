"""Dockerfile and docker-compose.yml, checked without a container engine: no image is built."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config import Settings
from tests.repository.tree import ROOT, pyproject, sources

DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
BIN = Path(sys.executable).parent


def instructions(name: str) -> list[str]:
    """Return the arguments of every `name` instruction of the Dockerfile."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.split(None, 1)[1] for line in joined.splitlines() if line.startswith(f"{name} ")]


def active_services(*profiles: str) -> set[str]:
    """Return the services that compose starts with these profiles."""
    return {
        name
        for name, spec in SERVICES.items()
        if set(spec.get("profiles", profiles)) & set(profiles) or "profiles" not in spec
    }


def test_hadolint_reports_nothing_for_the_dockerfile() -> None:
    process = subprocess.run(
        [BIN / "hadolint", "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert (process.returncode, process.stdout) == (0, "")


def test_the_compose_file_follows_the_compose_specification() -> None:
    process = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml"],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout


def test_the_image_runs_as_a_numeric_user_that_is_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", instructions("USER")[-1])
    assert f"--uid {instructions('USER')[-1].split(':')[0]} " in DOCKERFILE


def test_the_image_is_built_in_a_separate_stage_from_hashed_locks_only() -> None:
    assert len(instructions("FROM")) == 2
    installs = [step for step in instructions("RUN") if "pip install" in step]
    assert installs
    assert all("--require-hashes" in step or "--no-deps --no-build-isolation" in step for step in installs)


def test_the_image_does_not_contain_tensorflow_or_send_telemetry() -> None:
    assert "requirements.txt" in DOCKERFILE
    assert "requirements-keras.txt" not in DOCKERFILE
    assert "ORT_DISABLE_TELEMETRY=1" in " ".join(instructions("ENV")).split()


def test_dockerignore_admits_exactly_the_files_that_the_image_copies() -> None:
    admitted = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {name for step in instructions("COPY") if "--from" not in step for name in step.split()[:-1]}
    assert copied == admitted
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_contains_every_package_of_the_wheel() -> None:
    packages = pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= {step.split()[0] for step in instructions("COPY")}


def test_the_health_check_requests_readyz_with_python() -> None:
    check = yaml.safe_load(instructions("HEALTHCHECK")[0].split("CMD", 1)[1])
    assert check[:2] == ["python", "-c"]
    assert "/readyz" in check[2]
    compile(check[2], "HEALTHCHECK", "exec")


def test_the_image_sets_only_variables_that_the_settings_read() -> None:
    variables = set(re.findall(r"TRIVIUM_([A-Z_]+)", DOCKERFILE + (ROOT / "docker-compose.yml").read_text()))
    assert {name.lower() for name in variables} <= Settings.model_fields.keys()


def test_every_dependency_of_a_service_exists() -> None:
    dependencies = {other for spec in SERVICES.values() for other in spec.get("depends_on", {})}
    assert dependencies <= SERVICES.keys()


@pytest.mark.parametrize("profiles", [[], ["postgres"]], ids=["sqlite", "postgres"])
def test_required_dependencies_start_with_their_service(profiles: list[str]) -> None:
    started = active_services(*profiles)
    required = {
        other
        for name in started
        for other, options in SERVICES[name].get("depends_on", {}).items()
        if options.get("required", True)
    }
    assert required <= started


def test_postgres_is_migrated_before_the_server_starts() -> None:
    assert active_services() == {"server", "worker"}
    assert active_services("postgres") == {"server", "worker", "migrate", "postgres"}
    assert SERVICES["server"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert "healthcheck" in SERVICES["postgres"]


def test_declared_and_mounted_volumes_are_the_same() -> None:
    mounted = {mount.split(":")[0] for spec in SERVICES.values() for mount in spec.get("volumes", [])}
    assert mounted == set(COMPOSE["volumes"])


def test_server_and_worker_share_the_data_directory_of_the_image() -> None:
    home = re.search(r"TRIVIUM_HOME=(\S+)", DOCKERFILE)
    assert home
    assert SERVICES["server"]["volumes"] == SERVICES["worker"]["volumes"] == [f"data:{home[1]}"]
    assert instructions("VOLUME") == [home[1]]


def test_every_service_runs_an_existing_trivium_command() -> None:
    for name in ("server", "worker", "migrate"):
        command = SERVICES[name]["command"]
        process = subprocess.run([BIN / "trivium", *command, "--help"], capture_output=True, text=True)
        assert process.returncode == 0, f"{name}: trivium {shlex.join(command)}: {process.stderr}"


def test_ports_are_published_on_this_machine_only() -> None:
    assert all(port.startswith("127.0.0.1:") for spec in SERVICES.values() for port in spec.get("ports", []))


def test_secrets_come_from_the_environment() -> None:
    for spec in SERVICES.values():
        for name, value in spec.get("environment", {}).items():
            assert not re.search("PASSWORD|SECRET|TOKEN|KEY", name) or re.fullmatch(r"\$\{[A-Z_]+-\}", value)
    assert not re.search(r"//[^/@\s]*:[^/@\s]*@", (ROOT / "docker-compose.yml").read_text())


def test_the_database_is_sqlite_without_a_password() -> None:
    url = SERVICES["server"]["environment"]["TRIVIUM_DATABASE_URL"]
    assert re.fullmatch(r"\$\{POSTGRES_PASSWORD:\+postgresql\+psycopg://\w+@postgres/\w+\}", url)
    assert Settings(database_url="").url.startswith("sqlite:///")


def test_no_data_directory_is_committed() -> None:
    assert [path for path in sources() if ".trivium" in path.parts or path.name == "admin.key"] == []
