"""The commands that list, show, edit, promote and delete models and versions."""

from __future__ import annotations

from datetime import UTC, datetime


def test_models_are_listed_with_their_aliases(live, two_versions):
    assert live("promote", f"{two_versions}:2").code == 0
    assert live("models", "--search", two_versions, "--json").record["items"][0]["aliases"] == {"champion": 2}
    description = live("models", "--search", two_versions).out
    assert two_versions in description
    assert "champion -> 2" in description


def test_versions_are_listed_newest_first_and_filtered_by_tag(live, two_versions):
    assert [v["version"] for v in live("versions", two_versions, "--json").record["items"]] == [2, 1]
    assert [
        v["version"] for v in live("versions", two_versions, "--tag", "round=two", "--json").record["items"]
    ] == [2]
    assert "round=two" in live("versions", two_versions).out


def test_show_takes_a_name_a_version_and_an_alias(live, two_versions):
    assert live("promote", f"{two_versions}:1").code == 0
    assert live("show", two_versions, "--json").record["name"] == two_versions
    assert live("show", f"{two_versions}:2", "--json").record["version"] == 2
    assert live("show", f"{two_versions}@champion", "--json").record["version"] == 1
    description = live("show", f"{two_versions}:1").out
    assert "age" in description
    assert "(read from the file), numpy " in description.partition("made by: scikit-learn ")[2]
    missing = live("show", f"{two_versions}@missing")
    assert missing.code == 1
    assert "missing" in missing.err


def test_an_edit_adds_and_removes_tags_and_keeps_the_others(live, published):
    version = f"{published}:1"
    assert live("edit", version, "--tag", "a=1", "--tag", "b=2").code == 0
    edited = live("edit", version, "--tag", "c=3", "--untag", "a", "--description", "better", "--json").record
    assert edited["tags"] == {"b": "2", "c": "3"}
    assert edited["description"] == "better"


def test_a_version_is_archived_and_unarchived(live, published):
    assert live("archive", f"{published}:1", "--json").record["state"] == "archived"
    assert live("promote", f"{published}:1").code == 1
    assert live("unarchive", f"{published}:1", "--json").record["state"] == "ready"


def test_history_lists_promotes_and_rollbacks(live, two_versions):
    assert live("promote", f"{two_versions}:1", "--reason", "the first").code == 0
    between = datetime.now(UTC).isoformat()
    promoted = live("promote", f"{two_versions}:2", "--reason", "more data", "--json").record
    assert (promoted["alias"], promoted["version"]) == ("champion", 2)
    assert live("rollback", two_versions, "--reason", "worse", "--json").record["version"] == 1

    moves = live("history", two_versions, "--json").record["items"]
    assert [(m["version"], m["reason"]) for m in moves] == [(1, "worse"), (2, "more data"), (1, "the first")]
    assert "more data" in live("history", two_versions).out
    assert live("history", two_versions, "--at", between, "--json").record["version"] == 1
    assert live("history", two_versions, "--at", "2001-01-01T00:00:00Z").code == 1


def test_any_alias_can_be_moved_and_deleted(live, published):
    assert live("promote", f"{published}:1", "--alias", "challenger").code == 0
    assert live("delete", f"{published}@challenger", "--yes").code == 0
    assert live("show", f"{published}@challenger").code == 1


def test_a_delete_that_would_break_an_alias_is_refused_with_the_alias(live, two_versions):
    live("promote", f"{two_versions}:1")
    failure = live("delete", f"{two_versions}:1", "--yes")
    assert failure.code == 1
    assert "champion" in failure.err
    assert live("delete", f"{two_versions}:2", "--yes").code == 0
    assert [v["version"] for v in live("versions", two_versions, "--json").record["items"]] == [1]


def test_a_model_is_deleted_with_its_versions(live, published):
    assert live("delete", published, "--yes").code == 0
    assert live("show", published).code == 1


def test_nothing_is_deleted_when_a_confirmation_is_impossible(live, published):
    assert live("delete", published).code == 2
    assert live("show", published).code == 0


def test_a_version_can_be_promoted_for_a_share_of_the_devices(live, two_versions):
    assert live("promote", f"{two_versions}:1", "--alias", "field").code == 0
    shared = live("promote", f"{two_versions}:2", "--alias", "field", "--edge-percent", "10")
    assert "for 10 % of the devices" in shared.err
    complete = live("promote", f"{two_versions}:2", "--alias", "field", "--json").record
    assert (complete["version"], complete["edge_percent"]) == (2, None)
