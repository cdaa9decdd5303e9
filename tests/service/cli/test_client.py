"""The client against a real server, over a good network and a bad one."""

from __future__ import annotations

import hashlib

import httpx
import pytest

from service.client import Client, ModelRef, ServerRefused, Unreachable, path
from tests.service.cli.lossy import lossy


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture
def bad_network(server):
    with lossy(server.url) as proxy, Client(proxy.url, server.key) as client:
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
def test_what_is_no_model_is_refused_with_the_ways_to_write_one(text):
    with pytest.raises(ValueError, match="name:version"):
        ModelRef.parse(text)


def test_every_part_of_a_path_is_quoted():
    assert path("models", "a/../b c", "versions", 1) == "/v1/models/a%2F..%2Fb%20c/versions/1"


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://localhost", "http://", ""])
def test_an_address_that_is_none_is_refused_at_once(url):
    with pytest.raises(httpx.InvalidURL):
        Client(url, None)


def test_a_publish_whose_answer_was_lost_makes_one_version(bad_network, request_for):
    proxy, client = bad_network
    proxy.faults.extend(["lose", "lose"])
    created = client.publish("lost-answer", request_for)
    assert not proxy.faults
    listed = client.pages(path("models", "lost-answer", "versions"))["items"]
    assert [version["version"] for version in listed] == [created["version"]] == [1]


def test_a_first_try_that_is_still_running_is_waited_for(bad_network, request_for):
    proxy, client = bad_network
    proxy.faults.extend(["lose", "busy", "busy"])
    assert client.publish("still-running", request_for)["version"] == 1
    assert not proxy.faults


def test_an_upload_and_a_wait_outlast_lost_connections(bad_network, files, request_for):
    proxy, client = bad_network
    proxy.faulty = "PUT"
    proxy.faults.extend(["lose", "lose"])
    assert client.upload(files.model) == request_for["artifact"]
    created = client.publish("outlasting", request_for)
    proxy.faulty = "GET"
    proxy.faults.extend(["lose", "lose"])
    assert client.wait("outlasting", created["version"])["state"] == "ready"
    assert not proxy.faults


def test_a_key_whose_answer_was_lost_is_made_once_and_its_secret_is_known(bad_network, server):
    proxy, client = bad_network
    before = len(client.pages(path("keys"))["items"])
    proxy.faults.append("lose")
    made = client.create(path("keys"), {"name": "lost", "scopes": ["predict"]})
    assert len(client.pages(path("keys"))["items"]) == before + 1
    with Client(server.url, made["key"]) as theirs:
        assert "items" in theirs.pages(path("models"))


def test_a_prediction_whose_connection_was_lost_is_not_sent_again(bad_network):
    proxy, client = bad_network
    proxy.faults.append("lose")
    with pytest.raises(Unreachable):
        client.predict(ModelRef("nobody"), b'{"instances": []}')


def test_two_publishes_with_the_same_words_are_two_versions(client, request_for):
    numbers = [client.publish("twice", request_for)["version"] for _ in range(2)]
    assert numbers == [1, 2]


def test_a_server_that_never_answered_is_given_up(free_port):
    with Client(f"http://127.0.0.1:{free_port}", None) as client, pytest.raises(Unreachable) as lost:
        client.call("GET", "/readyz")
    assert str(free_port) in str(lost.value)


def test_an_upload_reports_its_progress_and_can_be_repeated(client, tmp_path):
    file = tmp_path / "large.bin"
    file.write_bytes(b"x" * (5 << 20))
    sent: list[int] = []
    assert client.upload(file, sent.append) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sent == sorted(sent)
    assert sent[-1] == 5 << 20
    assert client.upload(file) == client.upload(file)


def test_a_list_is_followed_to_its_last_page(client, request_for):
    for _ in range(3):
        client.publish("paged", request_for)
    page = client.pages(path("models", "paged", "versions"), {"page_size": 1})
    assert [version["version"] for version in page["items"]] == [3, 2, 1]
    assert page["next_page_token"] is None


def test_a_refusal_carries_the_problem_and_a_line_for_each_fault(client):
    with pytest.raises(ServerRefused) as refused:
        client.create(path("keys"), {"name": "", "scopes": ["everything"]})
    assert refused.value.status == 422
    lines = refused.value.lines()
    assert len(lines) == 2
    assert any(line.startswith("name: ") for line in lines)


def test_an_answer_that_is_not_ours_is_shown_by_its_status(server):
    with Client(server.url + "/nowhere", server.key) as client, pytest.raises(ServerRefused) as refused:
        client.call("GET", "/readyz")
    assert refused.value.status == 404
