"""Unmodified clients of the Open Inference Protocol against a server, run by scripts/test-clients.

Each client runs in a process with its own libraries and prints what it received; the tests compare that with
`predict`. The requests called published have the inputs of the files that the projects publish for their own
iris and titanic models: kserve's end-to-end tests and MLServer's examples of `mlserver infer`.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from tests.conftest import require_client
from tests.harness.machine import free_port
from tests.harness.server import Server, serving
from tests.service.estimators import mixed_columns

pytestmark = [pytest.mark.clients, pytest.mark.slow]

HERE = Path(__file__).parent
IRIS = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]
PEOPLE = [
    {"age": 40.5, "city": "Bern", "member": True, "visits": 3},
    {"age": None, "city": "Genève", "member": False, "visits": 8},
]
PASSENGERS: list[dict[str, Any]] = [
    {
        "PassengerId": 1,
        "Pclass": 3,
        "Name": "Braund, Mr. Owen Harris",
        "Sex": "male",
        "Age": 22.0,
        "SibSp": 1,
        "Parch": 0,
        "Ticket": "A/5 21171",
        "Fare": 7.25,
        "Cabin": "",
        "Embarked": "S",
    },
    {
        "PassengerId": 2,
        "Pclass": 1,
        "Name": "Cumings, Mrs. John Bradley (Florence Briggs Thayer)",
        "Sex": "female",
        "Age": 38.0,
        "SibSp": 1,
        "Parch": 0,
        "Ticket": "PC 17599",
        "Fare": 71.2833,
        "Cabin": "C85",
        "Embarked": "C",
    },
]
KINDS = {int: "INT64", float: "FP64", str: "BYTES"}


def iris_input(name: str, datatype: str) -> dict[str, Any]:
    return {"name": name, "shape": [2, 4], "datatype": datatype, "data": IRIS}


TITANIC = {
    "inputs": [
        {"name": name, "shape": [2], "datatype": KINDS[type(value)], "data": [p[name] for p in PASSENGERS]}
        for name, value in PASSENGERS[0].items()
    ]
}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "iris": ("iris", {"inputs": [iris_input("input-0", "FP32")]}),
    "iris, answer in binary": (
        "iris",
        {"inputs": [iris_input("input-0", "FP32")], "parameters": {"binary_data_output": True}},
    ),
    "titanic": ("titanic", TITANIC),
    "titanic, answer in binary": ("titanic", TITANIC | {"parameters": {"binary_data_output": True}}),
    "titanic, data frame": ("titanic", TITANIC | {"parameters": {"content_type": "pd"}}),
}
"""Of kserve: name, model and request."""


def titanic_model() -> tuple[Any, pd.DataFrame]:
    """A pipeline for passengers, fitted on a few of them."""
    frame = pd.DataFrame([{**p, "PassengerId": n} for n, p in enumerate(PASSENGERS * 10, 1)])
    frame.loc[::3, "Age"] += 9.0
    columns = ColumnTransformer(
        [
            ("numbers", SimpleImputer(), ["Pclass", "Age", "SibSp", "Parch", "Fare"]),
            ("categories", OneHotEncoder(handle_unknown="ignore"), ["Sex", "Embarked"]),
        ]
    )
    return make_pipeline(columns, LogisticRegression()).fit(frame, frame["Sex"] == "female"), frame


class Site:
    """A server with the models iris, titanic and mixed."""

    def __init__(self, server: Server, grpc_port: int) -> None:
        self.server, self.grpc_port = server, grpc_port

    def run(self, client: str, *arguments: object) -> Any:
        """Run `client`_client.py with the client's Python, and return what it prints."""
        urls = [f"127.0.0.1:{self.server.port}", f"127.0.0.1:{self.grpc_port}"]
        command = [require_client(client), HERE / f"{client}_client.py", *urls, self.server.key, *arguments]
        process = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout.splitlines()[-1])

    def predict(self, model: str, rows: list[Any]) -> dict[str, list[Any]]:
        """The outputs of `predict`, flat."""
        predictions = self.server.call_json("POST", f"/v1/models/{model}/predict", {"instances": rows})
        answers = predictions["predictions"]
        probabilities = [p for answer in answers for p in answer["probabilities"].values()]
        return {"label": [answer["label"] for answer in answers], "probabilities": probabilities}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    for client in ("triton", "kserve", "mlserver"):
        require_client(client)
    port = free_port()
    iris = load_iris(as_frame=True)
    names = iris.target_names[iris.target]
    mixed = mixed_columns()
    titanic, passengers = titanic_model()
    with serving(tmp_path_factory.mktemp("clients") / "home", grpc_port=port) as server:
        for name, model, frame in (
            ("iris", LogisticRegression(max_iter=1000).fit(iris.data, names), iris.data),
            ("mixed", mixed.model, mixed.frame),
            ("titanic", titanic, passengers),
        ):
            server.publish(name, model, frame.to_csv(index=False).encode(), alias="champion")
        yield Site(server, port)


def same(received: dict[str, list[Any]], expected: dict[str, list[Any]]) -> bool:
    """Whether labels are equal, and probabilities up to the rounding of float32 inputs."""
    return received["label"] == expected["label"] and received["probabilities"] == pytest.approx(
        expected["probabilities"], abs=1e-5
    )


def test_tritonclient_over_http_and_grpc(site: Site) -> None:
    report = site.run("triton")
    iris, people = site.predict("iris", IRIS), site.predict("mixed", PEOPLE)
    codes = {
        "http": dict.fromkeys(("shape", "infinity", "strings", "empty"), "400")
        | {"model": "404", "key": "401"},
        "grpc": dict.fromkeys(("shape", "infinity", "strings", "empty"), "StatusCode.INVALID_ARGUMENT")
        | {"model": "StatusCode.NOT_FOUND", "key": "StatusCode.UNAUTHENTICATED"},
    }
    for transport in ("http", "grpc"):
        received = report[transport]
        assert [received[k] for k in ("live", "ready", "model ready", "version ready")] == [True] * 4
        assert received["missing ready"] is False
        for name in ("matrix", "float32", "compressed"):
            assert received[name]["id"] == "7"
            assert same(received[name], iris), name
        assert same(received["columns"], people)
        assert received["many rows"] == sorted(set(iris["label"]))
        assert {name: code for name, (code, _) in received["errors"].items()} == codes[transport]
    assert [text for _, text in report["http"]["errors"].values()] == [
        text for _, text in report["grpc"]["errors"].values()
    ]
    assert report["http"]["typed"]["label"] == iris["label"]
    assert report["grpc"]["asynchronous"] == {"label": iris["label"]}
    assert report["grpc"]["stream"][0] == "StatusCode.UNIMPLEMENTED"
    for metadata in (report["http"]["metadata"], report["grpc"]["metadata"]):
        assert metadata["name"] == "iris"
        assert [i["name"] for i in metadata["inputs"]] == ["input"]


def test_kserve_with_its_published_requests(site: Site, tmp_path: Path) -> None:
    requests = tmp_path / "requests.json"
    requests.write_text(json.dumps(PUBLISHED))
    report = site.run("kserve", requests)
    expected = {"iris": site.predict("iris", IRIS), "titanic": site.predict("titanic", PASSENGERS)}
    for received in report.values():
        assert [received.pop(k) for k in ("live", "ready", "model ready")] == [True] * 3
    for name, (model, _) in PUBLISHED.items():
        for form in (name, f"{name}, typed", f"{name}, raw"):
            assert same(report["rest"][form], expected[model]), form
            if form != name:
                assert same(report["grpc"][form], expected[model]), form


def test_mlserver_encodes_requests_and_decodes_answers(site: Site) -> None:
    report = site.run("mlserver")
    assert same(report["array"], site.predict("iris", IRIS))
    assert same(report["data frame"], site.predict("mixed", PEOPLE))
    assert report["metadata"] == ["trivium", "iris", ["input"]]


@pytest.mark.parametrize("options", [[], ["--binary-data"]], ids=["JSON", "binary"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_mlserver_infer_scores_a_file_of_requests(
    site: Site, tmp_path: Path, options: list[str], batch_size: int
) -> None:
    """Its published file has one row of four FP64 values in each line, in an input called predict."""
    rows = [[5.1 + n / 10, 3.5 - n / 10, 1.4 + n / 2, 0.2 + n / 5] for n in range(10)]
    tensors = [{"name": "predict", "shape": [1, 4], "datatype": "FP64", "data": row} for row in rows]
    lines = [json.dumps({"id": f"row-{n}", "inputs": [tensor]}) for n, tensor in enumerate(tensors)]
    requests, answers = tmp_path / "requests.txt", tmp_path / "answers.txt"
    requests.write_text("\n".join(lines))
    command = [
        require_client("mlserver").with_name("mlserver"),
        *("infer", "-u", f"127.0.0.1:{site.server.port}", "-m", "iris", "-i", requests, "-o", answers),
        *("-w", 2, "-s", batch_size, "-H", f"Authorization: Bearer {site.server.key}", *options),
    ]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=300)
    records = [json.loads(line) for line in answers.read_text().splitlines()]
    records.sort(key=lambda record: int(record["id"].removeprefix("row-")))
    assert [r["id"] for r in records] == [f"row-{n}" for n in range(10)]
    labels = [o["data"][0] for r in records for o in r["outputs"] if o["name"] == "label"]
    assert labels == site.predict("iris", rows)["label"]


def test_the_protocols_openapi_document_describes_the_server(site: Site, tmp_path: Path) -> None:
    """MLServer's package contains the document, with the paths without versions that KServe's lacks."""
    (document,) = (
        require_client("mlserver").parents[1].glob("lib/*/site-packages/mlserver/rest/openapi/dataplane.json")
    )
    described = json.loads(
        document.read_text().replace('"type": "bytes"', '"type": "string"')
    )  # no JSON type
    # streams and generate are MLServer's own; the models of the examples do not exist here
    described["paths"] = {
        p: d for p, d in described["paths"].items() if not p.endswith(("_stream", "generate"))
    }
    for path in described["paths"].values():
        for parameter in path.get("parameters", []):
            values = {"model_name": ["iris", "missing"], "model_version": ["1", "7", "x"]}
            parameter["schema"]["enum"] = values[parameter["name"]]
    copy = tmp_path / "dataplane.json"
    copy.write_text(json.dumps(described))
    command = [
        require_client("mlserver").parents[3] / "bin/st",
        *("run", copy, "--url", site.server.url, "--header", f"Authorization: Bearer {site.server.key}"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", 40, "--seed", 7, "--no-color"),
        *("--checks", "not_a_server_error,content_type_conformance,response_schema_conformance"),
    ]
    process = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert process.returncode == 0, process.stdout
