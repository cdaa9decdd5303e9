"""The commands of the README and of the pages in docs/, run block by block against a real server.

The pages share one server and one directory, as for a reader who tries one page after another.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from service.cli import app
from service.config import Settings
from tests.harness.forked_commands import forked_trivium

ROOT = Path(__file__).parent.parent
ADDRESS = "http://127.0.0.1:8080"
GRPC_ADDRESS = "127.0.0.1:8081"
COMMAND = ".venv/bin/trivium "
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)")


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of a page in one language. Blocks in `sh` are run by the tests."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


class Shell:
    """Runs commands in a directory laid out like the repository, with a server that may read it."""

    def __init__(
        self, directory: Path, url: str, grpc: str, trivium: Path, environment: dict[str, str]
    ) -> None:
        self.directory, self._environment = directory, environment
        self._replacements = {ADDRESS: url, GRPC_ADDRESS: grpc, COMMAND: f"{trivium} "}

    def run(self, block: str) -> str:
        """Standard output of the block. Fails the test when the block fails."""
        for documented, actual in self._replacements.items():
            block = block.replace(documented, actual)
        process = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.directory,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, f"{block}\n{process.stdout}\n{process.stderr}"
        return process.stdout

    def run_page(self, page: str, first: int = 0) -> list[str]:
        """The outputs of the page's blocks, from number `first` on."""
        return [self.run(block) for block in blocks(page, "sh")[first:]]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    if shutil.which("curl") is None:
        pytest.fail("the commands of the docs use curl: install it to run this test")
    directory = tmp_path_factory.mktemp("docs")
    (directory / ".venv").symlink_to(sys.prefix)
    (directory / "scripts").symlink_to(ROOT / "scripts")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRIVIUM_")}
    environment["TRIVIUM_BATCH_ROOTS"] = str(directory)
    log = directory / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            [Path(sys.prefix) / "bin" / "trivium", "serve", "--port", "0", "--grpc-port", "0"],
            cwd=directory,
            env=environment,
            stderr=out,
        )
    try:
        url, grpc = await_addresses(server, log)
        with forked_trivium() as trivium:
            yield Shell(directory, url, grpc, trivium, environment | {"TRIVIUM_URL": url})
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


@pytest.fixture(scope="module")
def published_iris(shell: Shell) -> str:
    """Run the first block of the README, which other pages require, and return its output."""
    return shell.run(blocks("README.md", "sh")[0])


@pytest.fixture
def new_device(shell: Shell) -> Path:
    """The directory of a device, in which no page has installed a file yet."""
    device = shell.directory / ".trivium/device"
    shutil.rmtree(device, ignore_errors=True)
    return device


def await_addresses(server: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    """Wait until the server is up; return its URL and its address for gRPC."""
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        if "Application startup complete" in (text := log.read_text()):
            serving = json.loads(next(line for line in text.splitlines() if '"serving"' in line))
            return serving["url"], serving["grpc"]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def test_the_commands_of_the_readme_do_what_it_describes(
    shell: Shell, published_iris: str, new_device: Path
) -> None:
    assert "iris:1 is ready on onnx" in published_iris
    predict, score, train, edge = shell.run_page("README.md", first=1)
    assert predict.startswith('{"predictions":[{"label":"setosa"')
    assert json.loads(predict).keys() == json.loads(blocks("README.md", "json")[0]).keys()
    assert score.startswith("150 rows scored with iris:1 (")
    scores = (shell.directory / "iris.scores.csv").read_text().splitlines()
    assert (len(scores), scores[1]) == (151, '"setosa","setosa",1,0,0')
    assert train.startswith("iris-trained:1 was trained on 120 rows in 1 partition; on 30 rows held out: ")
    assert edge.startswith("iris:1 as .tflite (none) is ready")
    *_, device = edge.splitlines()
    assert json.loads(device)["predictions"][0]["label"] == "setosa"
    assert (new_device / "iris.tflite").stat().st_size > 0


def test_the_commands_of_the_online_page_do_what_it_describes(shell: Shell, published_iris: str) -> None:
    csv, predict, in_time, versions, rollback, keys = shell.run_page("docs/howto/online.md")
    assert csv.splitlines()[0].startswith("label,probability.setosa")
    assert "setosa" in predict
    assert json.loads(in_time)["predictions"][0]["label"] == "setosa"
    assert "iris:2 is ready on onnx" in versions
    assert "trained on more data" in versions  # the history
    assert "aliases: champion" in rollback  # iris:1 again
    assert "scoring service" in keys


def test_the_commands_of_the_canary_page_do_what_it_describes(shell: Shell, published_iris: str) -> None:
    publish, split, wider, over_http, shadow, end = shell.run_page("docs/howto/canary.md")
    assert "petals:2 is ready" in publish
    assert "petals@champion: version 1 answers 90 %, version 2 answers 10 %" in split
    assert "traffic 1=50 2=50" in wider
    assert json.loads(over_http)["shadow"] == 2
    assert "shadow: version 2" in shadow
    assert end.startswith("petals@champion: version 1 answers every call")


def test_the_commands_of_the_open_inference_protocol_page_do_what_it_describes(
    shell: Shell, published_iris: str
) -> None:
    infer, grpc, score, predict = shell.run_page("docs/howto/open-inference-protocol.md")
    metadata, answer = map(json.loads, infer.replace("}{", "}\n{").splitlines())
    assert metadata["inputs"][0]["shape"] == [-1, 4]
    documented = json.loads(blocks("docs/howto/open-inference-protocol.md", "json")[0])
    assert answer | {"model_version": "1"} == documented
    assert grpc == blocks("docs/howto/open-inference-protocol.md", "text")[0]
    assert score == '{"predictions":["setosa","virginica"]}{"predictions":["setosa","setosa"]}'
    assert json.loads(predict)["predictions"][0]["label"] == "setosa"


def test_the_commands_of_the_prediction_log_page_do_what_it_describes(
    shell: Shell, published_iris: str
) -> None:
    on, labelled, sent, read, off = shell.run_page("docs/howto/prediction-log.md")
    assert on.count("1 of the calls are recorded; rows are kept for 90 days, at most 2,000 MB") == 2
    assert json.loads(labelled) == {"labels": 1}
    assert sent == ""
    lines = (shell.directory / "predictions.csv").read_text().splitlines()
    label = lines[0].split(",").index('"feedback.label"')
    assert [line.split(",")[label] for line in lines[-2:]] == ['"setosa"', '"virginica"']
    assert "'input.sepal length (cm)', 'input.sepal width (cm)'" in read
    assert "no call is recorded" in off


def test_the_commands_of_the_answers_page_do_what_it_describes(shell: Shell) -> None:
    (publish,) = shell.run_page("docs/howto/answers.md")
    assert "wine:1 is ready" in publish
    assert "publisher's answers: 178 rows compared: 0 label mismatches" in publish


@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost"])
def test_the_command_of_the_page_on_other_models_publishes_converted_ones(shell: Shell, library: str) -> None:
    data = ROOT / "tests/data/boosted"
    for name, file in (("model.onnx", f"{library}.onnx"), ("answers.csv", f"{library}.answers.csv")):
        shutil.copyfile(data / file, shell.directory / name)
    shutil.copyfile(data / "rows.csv", shell.directory / "rows.csv")
    (publish,) = shell.run_page("docs/howto/models-from-elsewhere.md")
    assert "is ready on onnx" in publish
    assert "publisher's answers: 30 rows compared: 0 label mismatches" in publish


def test_the_commands_of_the_upgrade_page_do_what_it_describes(shell: Shell, published_iris: str) -> None:
    (verified,) = shell.run_page("docs/howto/upgrade.md")
    assert verified.startswith("iris:1 agrees\n  onnx: ")
    assert "0 label mismatches" in verified
    assert json.loads((shell.directory / "verified.json").read_text())["agreed"]


def test_the_commands_of_the_batch_page_do_what_it_describes(shell: Shell, published_iris: str) -> None:
    score, over_http, dry_run, by_day, schedule = shell.run_page("docs/howto/batch.md")
    assert score.startswith("150 rows scored with iris:1 (")
    assert len(over_http.splitlines()) == 151
    assert '"state":"done"' in (shell.directory / "iris.events.txt").read_text().splitlines()[-2]
    assert "id" not in json.loads(dry_run)
    assert by_day.startswith("300 rows scored with iris:1 (")
    lines = (shell.directory / "iris.days.csv").read_text().splitlines()
    assert [lines[row].split(",")[0] for row in (0, 1, 300)] == ['"day"', '"2026-11-01"', '"2026-11-02"']
    assert schedule.startswith("iris-weekly: runs every 1w, next at ")


def test_the_corrections_of_the_signatures_page_are_applied(shell: Shell) -> None:
    (publish,) = shell.run_page("docs/signatures.md")
    assert "churn:1 is ready" in publish
    signature = json.loads((shell.directory / "churn.json").read_text())["signature"]
    corrections = json.loads((shell.directory / "signature.json").read_text())
    assert signature["task"] == corrections["task"]
    for feature, correction in zip(signature["inputs"], corrections["inputs"], strict=True):
        assert feature | correction == feature
    assert signature["outputs"][0]["classes"] == [False, True]


@pytest.mark.parametrize(
    "page", ["README.md", *(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]
)
def test_every_link_of_a_page_leads_to_a_file(page: str) -> None:
    folder = (ROOT / page).parent
    missing = [target for target in LINK.findall((ROOT / page).read_text()) if not (folder / target).exists()]
    assert missing == []


def test_the_settings_page_lists_every_setting() -> None:
    listed = set(
        re.findall(r"^\| `TRIVIUM_([A-Z_]+)`", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    )
    assert listed == {name.upper() for name in Settings.model_fields} | {"URL", "API_KEY"}


def command_names() -> set[str]:
    """Every command of `trivium`, with its group: `keys create`."""
    root = typer.main.get_command(app)
    names = set()
    for name, command in root.commands.items():
        inner = getattr(command, "commands", None)
        names |= {f"{name} {subcommand}" for subcommand in inner} if inner else {name}
    return names


def test_the_command_line_page_lists_every_command() -> None:
    text = (ROOT / "docs/command-line.md").read_text()
    listed = set(re.findall(r"^\| `trivium ([a-z-]+(?: [a-z]+)?)", text, re.MULTILINE))
    assert listed == command_names()


def test_the_commands_of_the_training_page_do_what_it_describes(shell: Shell) -> None:
    train, schedule, over_http = shell.run_page("docs/howto/train-over-files.md")
    assert "tumour:1 was trained on" in train
    assert "tumour-weekly" in schedule
    assert json.loads(over_http)["name"] == "tumour-monthly"


def test_the_commands_of_the_edge_page_do_what_it_describes(
    shell: Shell, published_iris: str, new_device: Path
) -> None:
    (device,) = shell.run_page("docs/howto/edge-device.md")
    manifest = json.loads(next(line for line in device.splitlines() if line.startswith("{")))
    example = json.loads(blocks("docs/howto/edge-device.md", "json")[0])
    assert manifest.keys() == example.keys()
    assert manifest["report"].keys() >= example["report"].keys()
    assert (manifest["version"], manifest["report"]["label_agreement"]) == (1, 1.0)
    assert (new_device / "iris.tflite").stat().st_size == manifest["bytes"]


@pytest.mark.parametrize(
    "page", [*(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md")), "README.md"]
)
def test_every_source_path_that_a_page_names_exists(page: str) -> None:
    paths = re.findall(
        r"`((?:service|registry|scripts|benchmarks|tests)/[\w/.]+\.py)`", (ROOT / page).read_text()
    )
    assert [path for path in paths if not (ROOT / path).exists()] == []
