"""API keys: verification, scopes, expiry, rotation and the first admin key."""

from __future__ import annotations

import hashlib
import stat
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from registry import db, keys, revision
from registry.db import Sessions
from registry.errors import Invalid, NotFound
from registry.keys import KeyWithSecret
from registry.tables import KeyRow, now
from registry.vocabulary import SCOPES
from tests.harness.durability import Event, recorded
from tests.registry import child_actions
from tests.registry.helpers import run_until_killed


def _create(sessions: Sessions, *scopes: str, **options: object) -> KeyWithSecret:
    with sessions.begin() as session:
        return keys.create(session, "robot", list(scopes or ("predict",)), by="ann", **options)  # type: ignore[arg-type]


def _verify(sessions: Sessions, presented: str) -> keys.Key | None:
    with db.reading(sessions) as session:
        return keys.verify(presented, keys.active_keys(session))


def _expire(sessions: Sessions, key_id: str) -> None:
    with sessions.begin() as session:
        session.execute(
            update(KeyRow).where(KeyRow.id == key_id).values(expires_at=now() - timedelta(seconds=1))
        )


def test_only_the_exact_text_of_a_key_is_verified(sessions: Sessions) -> None:
    issued, other = _create(sessions), _create(sessions)
    key = _verify(sessions, issued.key)
    assert key is not None
    assert (key.id, key.name) == (issued.row.id, "robot")
    _, _, secret = issued.key.split("_", 2)
    wrong_texts = [
        "",
        "trv",
        "trv__",
        issued.key[:-1],
        issued.key + "x",
        issued.key.upper(),
        f"trv_{other.row.id}_{secret}",
        f"xyz_{issued.row.id}_{secret}",
        f"trv_unknown_{secret}",
        keys.key_text(issued.row.id, ""),
        issued.row.digest,
        "trv_" + issued.row.id + "_\xff\x00",
    ]
    assert [_verify(sessions, text) for text in wrong_texts] == [None] * len(wrong_texts)


def test_only_the_sha256_of_a_key_is_stored(sessions: Sessions) -> None:
    issued = _create(sessions)
    with db.reading(sessions) as session:
        row = session.scalars(select(KeyRow)).one()
        assert row.digest == hashlib.sha256(issued.key.encode()).hexdigest()
        secret = issued.key.split("_", 2)[2]
        assert len(secret) >= 43  # 256 bits
        stored = [str(getattr(row, c.key)) for c in KeyRow.__table__.columns]
        assert not any(secret in value for value in stored)


def test_digests_are_compared_in_constant_time(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    original = keys.hmac.compare_digest

    def spy(a: str, b: str) -> bool:
        compared.append((a, b))
        return original(a, b)

    monkeypatch.setattr(keys.hmac, "compare_digest", spy)
    issued = _create(sessions)
    _verify(sessions, issued.key)
    _verify(sessions, issued.key + "x")
    assert [b for _, b in compared] == [issued.row.digest] * 2
    assert all(len(a) == 64 for a, _ in compared)  # digests have a fixed length


def test_a_key_is_limited_to_its_scopes_and_models(sessions: Sessions) -> None:
    limited = _verify(sessions, _create(sessions, "predict", "predict", models=["fraud", "churn"]).key)
    assert limited is not None
    assert limited.scopes == {"predict"}
    assert [limited.allows(s) for s in SCOPES] == [s == "predict" for s in SCOPES]
    assert (limited.reaches("fraud"), limited.reaches("spam")) == (True, False)
    admin = _verify(sessions, _create(sessions, "admin").key)
    assert admin is not None
    assert all(admin.allows(s) for s in SCOPES)
    assert admin.reaches("spam")
    without_models = _verify(sessions, _create(sessions, models=[]).key)
    assert without_models is not None
    assert not without_models.reaches("fraud")


def test_invalid_scopes_and_models_are_rejected(sessions: Sessions) -> None:
    for scopes, models, field in (
        ([], None, "scopes"),
        (["root"], None, "scopes"),
        (["predict"], ["No!"], "models"),
    ):
        with pytest.raises(Invalid) as raised, sessions.begin() as session:
            keys.create(session, "robot", scopes, by="ann", models=models)
        assert raised.value.errors[0].field == field
    with db.reading(sessions) as session:
        assert session.scalars(select(KeyRow)).all() == []


def test_an_expired_key_is_not_verified_even_if_it_was_loaded_before(sessions: Sessions) -> None:
    issued = _create(sessions, expires_in_s=3600)
    with db.reading(sessions) as session:
        loaded = keys.active_keys(session)
    assert keys.verify(issued.key, loaded) is not None
    _expire(sessions, issued.row.id)
    assert _verify(sessions, issued.key) is None
    expired = {
        i: keys.Key(k.id, k.name, k.digest, k.scopes, k.models, now() - timedelta(seconds=1))
        for i, k in loaded.items()
    }
    assert keys.verify(issued.key, expired) is None
    with pytest.raises(NotFound, match="it has expired"), sessions.begin() as session:
        keys.rotate(session, issued.row.id)


def test_a_revoked_key_is_not_verified_but_stays_in_the_list(sessions: Sessions) -> None:
    issued = _create(sessions)
    with sessions.begin() as session:
        revoked_at = keys.revoke(session, issued.row.id).revoked_at
    with sessions.begin() as session:
        assert keys.revoke(session, issued.row.id).revoked_at == revoked_at
    assert _verify(sessions, issued.key) is None
    with sessions.begin() as session:
        with pytest.raises(NotFound, match="it was revoked"):
            keys.rotate(session, issued.row.id)
        with pytest.raises(NotFound):
            keys.revoke(session, "missing")
        assert [k.id for k in keys.search(session).items] == [issued.row.id]


def test_a_rotated_key_keeps_its_scopes_and_loses_its_old_text(sessions: Sessions) -> None:
    issued = _create(sessions, "edge", models=["fraud"])
    with sessions.begin() as session:
        rotated = keys.rotate(session, issued.row.id)
    assert _verify(sessions, issued.key) is None
    key = _verify(sessions, rotated.key)
    assert key is not None
    assert (key.id, key.scopes, key.models) == (issued.row.id, {"edge"}, {"fraud"})


def test_the_text_of_a_key_can_be_rebuilt_from_its_secret(sessions: Sessions) -> None:
    issued = _create(sessions, secret="s" * 43)
    assert issued.key == keys.key_text(issued.row.id, "s" * 43)
    assert _verify(sessions, issued.key) is not None


def test_changes_of_a_key_are_recorded_in_the_revision(sessions: Sessions) -> None:
    issued = _create(sessions)
    with sessions.begin() as session:
        keys.rotate(session, issued.row.id)
    with sessions.begin() as session:
        keys.revoke(session, issued.row.id)
    with db.reading(sessions) as session:
        assert revision.changes_since(session, 0) == (3, set(), {issued.row.id})


def test_active_keys_can_be_restricted_to_ids(sessions: Sessions) -> None:
    first, second = _create(sessions), _create(sessions)
    with db.reading(sessions) as session:
        assert set(keys.active_keys(session)) == {first.row.id, second.row.id}
        assert set(keys.active_keys(session, {second.row.id, "missing"})) == {second.row.id}


def test_search_returns_pages_of_keys_by_id(sessions: Sessions) -> None:
    ids = sorted(_create(sessions).row.id for _ in range(5))
    listed, token = [], None
    while True:
        with db.reading(sessions) as session:
            page = keys.search(session, page_size=2, page_token=token)
        listed += [k.id for k in page.items]
        if (token := page.next_token) is None:
            break
    assert listed == ids


def test_the_first_start_writes_an_admin_key_that_only_its_owner_can_read(
    sessions: Sessions, tmp_path: Path
) -> None:
    file = tmp_path / "home" / "admin.key"
    for is_created in (True, False, False):
        with sessions.begin() as session:
            assert keys.ensure_admin_key(session, file) is is_created
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [p.name for p in file.parent.iterdir()] == ["admin.key"]
    key = _verify(sessions, file.read_text().strip())
    assert key is not None
    assert key.scopes == {"admin"}


def test_a_registry_with_keys_gets_no_admin_key(sessions: Sessions, tmp_path: Path) -> None:
    _create(sessions)
    with sessions.begin() as session:
        assert not keys.ensure_admin_key(session, tmp_path / "admin.key")
    assert not (tmp_path / "admin.key").exists()


def test_the_next_start_replaces_the_key_file_of_a_start_killed_before_its_commit(
    url: str, sessions: Sessions, tmp_path: Path
) -> None:
    file = tmp_path / "admin.key"
    run_until_killed(child_actions.make_admin_and_die, url, str(file))
    orphan = file.read_text()
    with db.reading(sessions) as session:
        assert session.scalars(select(KeyRow)).all() == []
    with sessions.begin() as session:
        assert keys.ensure_admin_key(session, file)
    assert file.read_text() != orphan
    assert _verify(sessions, orphan.strip()) is None
    assert _verify(sessions, file.read_text().strip()) is not None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_partial_key_file_of_a_killed_start_is_replaced(sessions: Sessions, tmp_path: Path) -> None:
    file = tmp_path / "admin.key"
    file.with_suffix(".partial").write_text("trv_half")
    with sessions.begin() as session:
        assert keys.ensure_admin_key(session, file)
    assert _verify(sessions, file.read_text().strip()) is not None
    assert not file.with_suffix(".partial").exists()


def test_the_admin_key_is_durable_before_the_transaction_that_creates_it(
    sessions: Sessions, tmp_path: Path
) -> None:
    """Only its digest is stored: a lost file could not be written again."""
    file = tmp_path / "home" / "admin.key"
    with recorded() as log, sessions.begin() as session:
        assert keys.ensure_admin_key(session, file)
    assert log.entry_synced(file.parent) < log.saved(file) < log.committed("keys")
    assert log.steps(file.parent, "fsync", "rename") == [
        "fsync admin.partial",
        "rename admin.partial -> admin.key",
        "fsync .",
    ]


def test_the_admin_key_file_has_mode_0600_from_its_first_byte(sessions: Sessions, tmp_path: Path) -> None:
    (tmp_path / "admin.partial").touch(0o644)  # of a killed start
    with recorded() as log, sessions.begin() as session:
        keys.ensure_admin_key(session, tmp_path / "admin.key")
    opened = [e for e in log.events if e.kind == "open" and e.path.name.startswith("admin.")]
    assert [(e.path.name, e.bytes, e.mode) for e in opened] == [("admin.partial", 0, 0o600)]


@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_without_a_durable_admin_key_file_no_key_is_created(
    sessions: Sessions, tmp_path: Path, step: str
) -> None:
    def break_disk(event: Event) -> None:
        if event.kind == step:
            raise OSError(5, "Input/output error")

    with recorded(break_disk), pytest.raises(OSError, match="Input/output"), sessions.begin() as session:
        keys.ensure_admin_key(session, tmp_path / "admin.key")
    with sessions.begin() as session:
        assert session.scalars(select(KeyRow)).all() == []
        assert keys.ensure_admin_key(session, tmp_path / "admin.key")
    assert _verify(sessions, (tmp_path / "admin.key").read_text().strip()) is not None


def test_a_verifier_forgets_a_key_that_is_no_longer_active(sessions: Sessions) -> None:
    issued = _create(sessions, "predict")
    verifier = keys.Verifier()
    with db.reading(sessions) as session:
        active = keys.active_keys(session)
    for _ in range(2):
        assert verifier.verify(issued.key, active) == active[issued.row.id]
        assert verifier.verify(issued.key + "x", active) is None
    assert verifier.verify(issued.key, {}) is None
    assert verifier.verify(issued.key, active) == active[issued.row.id]


def test_a_verifier_does_not_accept_a_key_after_its_expiry(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = _create(sessions, "predict", expires_in_s=60)
    verifier = keys.Verifier()
    with db.reading(sessions) as session:
        active = keys.active_keys(session)
    assert verifier.verify(issued.key, active) is not None
    monkeypatch.setattr(keys, "now", lambda: now() + timedelta(seconds=61))
    assert verifier.verify(issued.key, active) is None
