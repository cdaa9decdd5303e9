"""`trivium keys`: a secret is shown once, and opens what it should."""

from __future__ import annotations


def test_a_created_secret_stands_alone_on_stdout_and_opens_its_scope_only(live, trivium, server, published):
    made = live("keys", "create", "--scope", "predict", "--model", published, "--name", "app")
    secret = made.out.strip()
    assert made.code == 0
    assert "\n" not in secret
    assert "only now" in made.err
    theirs = server.env | {"TRIVIUM_API_KEY": secret}
    assert trivium("show", published, env=theirs).code == 0
    assert trivium("keys", "list", env=theirs).code == 1


def test_a_key_is_listed_without_its_secret_rotated_and_revoked(live, trivium, server):
    made = live("keys", "create", "--scope", "predict,publish", "--expires-in", "10m", "--json").record
    assert made["scopes"] == ["predict", "publish"]
    listed = live("keys", "list", "--json")
    assert made["id"] in {key["id"] for key in listed.record["items"]}
    assert made["key"] not in listed.out
    assert made["id"] in live("keys", "list").out

    rotated = live("keys", "rotate", made["id"], "--json").record
    assert trivium("models", env=server.env | {"TRIVIUM_API_KEY": made["key"]}).code == 1
    assert trivium("models", env=server.env | {"TRIVIUM_API_KEY": rotated["key"]}).code == 0

    assert live("keys", "revoke", made["id"]).code == 0
    refused = trivium("models", env=server.env | {"TRIVIUM_API_KEY": rotated["key"]})
    assert refused.code == 1
    assert "TRIVIUM_API_KEY" in refused.err


def test_without_any_key_the_server_refuses_and_the_way_to_one_is_said(trivium, server, tmp_path):
    ran = trivium("models", env={"TRIVIUM_URL": server.url, "TRIVIUM_HOME": str(tmp_path)})
    assert ran.code == 1
    assert "TRIVIUM_API_KEY" in ran.err
