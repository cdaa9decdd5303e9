"""`trivium keys`: a secret is shown once, and has the scopes of its key."""

from __future__ import annotations


def test_a_new_secret_is_the_only_output_and_has_only_its_scope(live, trivium, server, published):
    created = live("keys", "create", "--scope", "predict", "--model", published, "--name", "app")
    secret = created.out.strip()
    assert created.code == 0
    assert "\n" not in secret
    assert "only now" in created.err
    key_env = server.env | {"TRIVIUM_API_KEY": secret}
    assert trivium("show", published, env=key_env).code == 0
    assert trivium("keys", "list", env=key_env).code == 1


def test_a_key_is_listed_without_its_secret_rotated_and_revoked(live, trivium, server):
    key = live("keys", "create", "--scope", "predict,publish", "--expires-in", "10m", "--json").record
    assert key["scopes"] == ["predict", "publish"]
    listing = live("keys", "list", "--json")
    assert key["id"] in {item["id"] for item in listing.record["items"]}
    assert key["key"] not in listing.out
    assert key["id"] in live("keys", "list").out

    rotated = live("keys", "rotate", key["id"], "--json").record
    assert trivium("models", env=server.env | {"TRIVIUM_API_KEY": key["key"]}).code == 1
    assert trivium("models", env=server.env | {"TRIVIUM_API_KEY": rotated["key"]}).code == 0

    assert live("keys", "revoke", key["id"]).code == 0
    failure = trivium("models", env=server.env | {"TRIVIUM_API_KEY": rotated["key"]})
    assert failure.code == 1
    assert "TRIVIUM_API_KEY" in failure.err


def test_the_list_of_keys_distinguishes_all_models_from_none(live, server):
    models_of = {}
    with server.client() as client:
        for models in (None, [], ["flag", "forest"]):
            body = {"name": "a", "scopes": ["predict"], "models": models}
            models_of[client.post("/v1/keys", json=body).json()["id"]] = models
    lines = {line.split()[0]: line for line in live("keys", "list").out.splitlines()}
    texts = {None: "all", (): "none", ("flag", "forest"): "flag, forest"}
    for key, models in models_of.items():
        assert f" {texts[models if models is None else tuple(models)]} " in lines[key]


def test_without_a_key_the_refusal_names_the_variable_for_it(trivium, server, tmp_path):
    result = trivium("models", env={"TRIVIUM_URL": server.url, "TRIVIUM_HOME": str(tmp_path)})
    assert result.code == 1
    assert "TRIVIUM_API_KEY" in result.err
