"""The client against a real server, over a good network and a bad one."""

from __future__ import annotations

import hashlib

import httpx
import pytest

from service.client import Client, ModelRef, ServerRefused, Unreachable, path
from tests.service.cli.unreliable_proxy import unreliable_proxy


@pytest.fixture
def client(server):
    with server.connect() as client:
        yield client


@pytest.fixture
def bad_network(server):
    with unreliable_proxy(server.url) as proxy, Client(proxy.url, server.key) as client:
        client.call("GET", "/readyz")  # later calls are repeated longer, because the server has answered once
        yield proxy, client


@pytest.fixture
def request_for(client, files):
    return {"artifact": client.upload(files.model), "format": "sklearn-joblib"}


@pytest.mark.parametrize(
    ("text", "name", "version", "alias"),
    [
        ("fraud", "fraud", None, None),
        ("fraud:3", "fraud", 3, None),
        ("fraud@champion", "fraud", None, "champion"),
    ],
)
def test_a_model_is_written_name_or_version_or_alias(text, name, version, alias):
    ref = ModelRef.parse(text)
    assert (ref.name, ref.version, ref.alias) == (name, version, alias)
    assert str(ref) == text


@pytest.mark.parametrize(
    "text", ["", ":1", "@a", "fraud:", "fraud@", "fraud:x", "fraud:-1", "fraud:1@a", "f@a:1"]
)
def test_an_invalid_model_reference_is_rejected_with_the_valid_forms(text):
    with pytest.raises(ValueError, match="name:version"):
        ModelRef.parse(text)


def test_every_part_of_a_path_is_quoted():
    assert path("models", "a/../b c", "versions", 1) == "/v1/models/a%2F..%2Fb%20c/versions/1"


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "http://", ""])
def test_an_invalid_address_is_rejected_at_once(url):
    with pytest.raises(httpx.InvalidURL):
        Client(url, None)


def test_a_publish_whose_response_was_lost_creates_one_version(bad_network, request_for, unique_name):
    proxy, client = bad_network
    proxy.faults.extend(["lose", "lose"])
    created = client.publish(unique_name, request_for)
    assert not proxy.faults
    versions = client.pages(path("models", unique_name, "versions"))["items"]
    assert [version["version"] for version in versions] == [created["version"]] == [1]


def test_a_first_attempt_that_still_runs_is_waited_for(bad_network, request_for, unique_name):
    proxy, client = bad_network
    proxy.faults.extend(["lose", "busy", "busy"])
    assert client.publish(unique_name, request_for)["version"] == 1
    assert not proxy.faults


def test_an_upload_and_a_wait_survive_lost_connections(bad_network, files, request_for, unique_name):
    proxy, client = bad_network
    proxy.faulty_method = "PUT"
    proxy.faults.extend(["lose", "lose"])
    assert client.upload(files.model) == request_for["artifact"]
    created = client.publish(unique_name, request_for)
    proxy.faulty_method = "GET"
    proxy.faults.extend(["lose", "lose"])
    assert client.wait(unique_name, created["version"])["state"] == "ready"
    assert not proxy.faults


def test_a_key_whose_response_was_lost_is_created_once_and_works(bad_network, server):
    proxy, client = bad_network
    before = len(client.pages(path("keys"))["items"])
    proxy.faults.append("lose")
    key = client.create(path("keys"), {"name": "lost", "scopes": ["predict"]})
    assert len(client.pages(path("keys"))["items"]) == before + 1
    with Client(server.url, key["key"]) as key_client:
        assert "items" in key_client.pages(path("models"))


def test_a_prediction_is_not_repeated_after_a_lost_connection(bad_network):
    proxy, client = bad_network
    proxy.faults.append("lose")
    with pytest.raises(Unreachable):
        client.predict(ModelRef("missing"), b'{"instances": []}')


def test_two_identical_publishes_create_two_versions(client, request_for, unique_name):
    numbers = [client.publish(unique_name, request_for)["version"] for _ in range(2)]
    assert numbers == [1, 2]


def test_a_server_that_never_answered_is_unreachable(free_port):
    with Client(f"http://127.0.0.1:{free_port}", None) as client, pytest.raises(Unreachable) as error:
        client.call("GET", "/readyz")
    assert str(free_port) in str(error.value)


def test_an_upload_reports_its_progress_and_can_be_repeated(client, tmp_path):
    file = tmp_path / "large.bin"
    file.write_bytes(b"x" * (5 << 20))
    sizes: list[int] = []
    assert client.upload(file, sizes.append) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sizes == sorted(sizes)
    assert sizes[-1] == 5 << 20
    assert client.upload(file) == client.upload(file)


def test_a_list_is_read_to_its_last_page(client, request_for, unique_name):
    for _ in range(3):
        client.publish(unique_name, request_for)
    page = client.pages(path("models", unique_name, "versions"), {"page_size": 1})
    assert [version["version"] for version in page["items"]] == [3, 2, 1]
    assert page["next_page_token"] is None


def test_a_refusal_contains_the_problem_and_a_line_per_error(client):
    with pytest.raises(ServerRefused) as error:
        client.create(path("keys"), {"name": "", "scopes": ["everything"]})
    assert error.value.status == 422
    lines = error.value.lines()
    assert len(lines) == 2
    assert any(line.startswith("name: ") for line in lines)


def test_an_error_without_a_problem_document_is_described_by_its_status(server):
    with Client(server.url + "/nowhere", server.key) as client, pytest.raises(ServerRefused) as error:
        client.call("GET", "/readyz")
    assert error.value.status == 404
