"""As far as this goes without an engine: the files are read, nothing is built or started."""

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
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.split(None, 1)[1] for line in joined.splitlines() if line.startswith(f"{name} ")]


def active(*profiles: str) -> set[str]:
    return {
        name
        for name, spec in SERVICES.items()
        if set(spec.get("profiles", profiles)) & set(profiles) or "profiles" not in spec
    }


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    found = subprocess.run(
        [BIN / "hadolint", "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_the_compose_file_follows_the_compose_specification() -> None:
    checked = subprocess.run(
        [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", ROOT / "docker-compose.yml"],
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout


def test_the_image_runs_as_a_numeric_user_that_is_not_root() -> None:
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", instructions("USER")[-1])
    assert f"--uid {instructions('USER')[-1].split(':')[0]} " in DOCKERFILE


def test_the_image_is_built_in_a_stage_of_its_own_from_hashed_locks_only() -> None:
    assert len(instructions("FROM")) == 2
    installs = [step for step in instructions("RUN") if "pip install" in step]
    assert installs
    assert all("--require-hashes" in step or "--no-deps --no-build-isolation" in step for step in installs)


def test_the_image_has_no_tensorflow_and_sends_no_telemetry() -> None:
    assert "requirements.txt" in DOCKERFILE
    assert "requirements-keras.txt" not in DOCKERFILE
    assert "ORT_DISABLE_TELEMETRY=1" in " ".join(instructions("ENV")).split()


def test_every_file_the_image_copies_is_let_through_by_dockerignore() -> None:
    let_through = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    copied = {name for step in instructions("COPY") if "--from" not in step for name in step.split()[:-1]}
    assert copied == let_through
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_holds_every_package_of_the_wheel() -> None:
    packages = pyproject()["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= {step.split()[0] for step in instructions("COPY")}


def test_the_health_check_is_python_and_asks_readyz() -> None:
    check = yaml.safe_load(instructions("HEALTHCHECK")[0].split("CMD", 1)[1])
    assert check[:2] == ["python", "-c"]
    assert "/readyz" in check[2]
    compile(check[2], "HEALTHCHECK", "exec")


def test_the_image_sets_only_variables_that_the_settings_read() -> None:
    named = set(re.findall(r"TRIVIUM_([A-Z_]+)", DOCKERFILE + (ROOT / "docker-compose.yml").read_text()))
    assert {name.lower() for name in named} <= Settings.model_fields.keys()


def test_every_service_depended_on_exists() -> None:
    depended_on = {other for spec in SERVICES.values() for other in spec.get("depends_on", {})}
    assert depended_on <= SERVICES.keys()


@pytest.mark.parametrize("profiles", [[], ["postgres"]], ids=["sqlite", "postgres"])
def test_what_a_service_cannot_start_without_is_started_with_it(profiles: list[str]) -> None:
    started = active(*profiles)
    needed = {
        other
        for name in started
        for other, how in SERVICES[name].get("depends_on", {}).items()
        if how.get("required", True)
    }
    assert needed <= started


def test_postgres_is_migrated_before_the_server_starts() -> None:
    assert active() == {"server", "worker"}
    assert active("postgres") == {"server", "worker", "migrate", "postgres"}
    assert SERVICES["server"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
    assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert "healthcheck" in SERVICES["postgres"]


def test_every_volume_is_declared_and_every_declared_one_is_used() -> None:
    mounted = {mount.split(":")[0] for spec in SERVICES.values() for mount in spec.get("volumes", [])}
    assert mounted == set(COMPOSE["volumes"])


def test_server_and_worker_share_the_data_directory_of_the_image() -> None:
    home = re.search(r"TRIVIUM_HOME=(\S+)", DOCKERFILE)
    assert home
    assert SERVICES["server"]["volumes"] == SERVICES["worker"]["volumes"] == [f"data:{home[1]}"]
    assert instructions("VOLUME") == [home[1]]


def test_every_command_is_one_that_trivium_has() -> None:
    for name in ("server", "worker", "migrate"):
        command = SERVICES[name]["command"]
        asked = subprocess.run([BIN / "trivium", *command, "--help"], capture_output=True, text=True)
        assert asked.returncode == 0, f"{name}: trivium {shlex.join(command)}: {asked.stderr}"


def test_the_server_is_published_on_this_machine_only() -> None:
    assert all(port.startswith("127.0.0.1:") for spec in SERVICES.values() for port in spec.get("ports", []))


def test_secrets_come_from_the_environment() -> None:
    for spec in SERVICES.values():
        for name, value in spec.get("environment", {}).items():
            assert not re.search("PASSWORD|SECRET|TOKEN|KEY", name) or re.fullmatch(r"\$\{[A-Z_]+-\}", value)
    assert not re.search(r"//[^/@\s]*:[^/@\s]*@", (ROOT / "docker-compose.yml").read_text())


def test_the_database_is_sqlite_until_a_password_is_given() -> None:
    url = SERVICES["server"]["environment"]["TRIVIUM_DATABASE_URL"]
    assert re.fullmatch(r"\$\{POSTGRES_PASSWORD:\+postgresql\+psycopg://\w+@postgres/\w+\}", url)
    assert Settings(database_url="").url.startswith("sqlite:///")


def test_no_data_directory_is_committed() -> None:
    assert [path for path in sources() if ".trivium" in path.parts or path.name == "admin.key"] == []
