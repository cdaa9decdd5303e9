"""Keys: only the holder of the text gets in, as far and as long as the key says."""

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
from registry.keys import IssuedKey
from registry.tables import KeyRow, now
from registry.vocabulary import SCOPES
from tests.registry import child_actions
from tests.registry.helpers import killed


def _create(sessions: Sessions, *scopes: str, **more: object) -> IssuedKey:
    with sessions.begin() as session:
        return keys.create(session, "robot", list(scopes or ("predict",)), by="ann", **more)  # type: ignore[arg-type]


def _verify(sessions: Sessions, presented: str) -> keys.Key | None:
    with db.reading(sessions) as session:
        return keys.verify(presented, keys.active_keys(session))


def _expire(sessions: Sessions, key_id: str) -> None:
    with sessions.begin() as session:
        session.execute(
            update(KeyRow).where(KeyRow.id == key_id).values(expires_at=now() - timedelta(seconds=1))
        )


def test_a_key_opens_with_its_text_and_nothing_else(sessions: Sessions) -> None:
    issued, other = _create(sessions), _create(sessions)
    found = _verify(sessions, issued.key)
    assert found is not None
    assert (found.id, found.name) == (issued.row.id, "robot")
    _, _, secret = issued.key.split("_", 2)
    wrong = [
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
    assert [_verify(sessions, w) for w in wrong] == [None] * len(wrong)


def test_the_secret_is_stored_nowhere_but_as_its_sha256(sessions: Sessions) -> None:
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
    real = keys.hmac.compare_digest

    def spy(a: str, b: str) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(keys.hmac, "compare_digest", spy)
    issued = _create(sessions)
    _verify(sessions, issued.key)
    _verify(sessions, issued.key + "x")
    assert [b for _, b in compared] == [issued.row.digest] * 2
    assert all(len(a) == 64 for a, _ in compared)  # of digests, so that no length is told either


def test_scopes_and_models_bound_what_a_key_may_do(sessions: Sessions) -> None:
    bound = _verify(sessions, _create(sessions, "predict", "predict", models=["fraud", "churn"]).key)
    assert bound is not None
    assert bound.scopes == {"predict"}
    assert [bound.allows(s) for s in SCOPES] == [s == "predict" for s in SCOPES]
    assert (bound.reaches("fraud"), bound.reaches("spam")) == (True, False)
    admin = _verify(sessions, _create(sessions, "admin").key)
    assert admin is not None
    assert all(admin.allows(s) for s in SCOPES)
    assert admin.reaches("spam")
    nowhere = _verify(sessions, _create(sessions, models=[]).key)
    assert nowhere is not None
    assert not nowhere.reaches("fraud")


def test_a_key_without_a_known_scope_or_with_a_bad_model_is_refused(sessions: Sessions) -> None:
    for scopes, models, field in (
        ([], None, "scopes"),
        (["root"], None, "scopes"),
        (["predict"], ["No!"], "models"),
    ):
        with pytest.raises(Invalid) as caught, sessions.begin() as session:
            keys.create(session, "robot", scopes, by="ann", models=models)
        assert caught.value.errors[0].field == field
    with db.reading(sessions) as session:
        assert session.scalars(select(KeyRow)).all() == []


def test_an_expired_key_opens_nothing_also_where_it_was_loaded_before(sessions: Sessions) -> None:
    issued = _create(sessions, expires_in_s=3600)
    with db.reading(sessions) as session:
        loaded = keys.active_keys(session)
    assert keys.verify(issued.key, loaded) is not None
    _expire(sessions, issued.row.id)
    assert _verify(sessions, issued.key) is None
    over = {
        i: keys.Key(k.id, k.name, k.digest, k.scopes, k.models, now() - timedelta(seconds=1))
        for i, k in loaded.items()
    }
    assert keys.verify(issued.key, over) is None
    with pytest.raises(NotFound, match="it has expired"), sessions.begin() as session:
        keys.rotate(session, issued.row.id)


def test_a_revoked_key_opens_nothing_and_stays_in_the_list(sessions: Sessions) -> None:
    issued = _create(sessions)
    with sessions.begin() as session:
        first = keys.revoke(session, issued.row.id).revoked_at
    with sessions.begin() as session:
        assert keys.revoke(session, issued.row.id).revoked_at == first
    assert _verify(sessions, issued.key) is None
    with sessions.begin() as session:
        with pytest.raises(NotFound, match="it was revoked"):
            keys.rotate(session, issued.row.id)
        with pytest.raises(NotFound):
            keys.revoke(session, "nobody")
        assert [k.id for k in keys.search(session).items] == [issued.row.id]


def test_a_rotated_key_keeps_its_rights_and_loses_its_old_text(sessions: Sessions) -> None:
    issued = _create(sessions, "edge", models=["fraud"])
    with sessions.begin() as session:
        fresh = keys.rotate(session, issued.row.id)
    assert _verify(sessions, issued.key) is None
    found = _verify(sessions, fresh.key)
    assert found is not None
    assert (found.id, found.scopes, found.models) == (issued.row.id, {"edge"}, {"fraud"})


def test_a_key_asked_for_twice_with_one_secret_has_one_text(sessions: Sessions) -> None:
    issued = _create(sessions, secret="s" * 43)
    assert issued.key == keys.key_text(issued.row.id, "s" * 43)
    assert _verify(sessions, issued.key) is not None


def test_every_change_of_a_key_is_noted(sessions: Sessions) -> None:
    issued = _create(sessions)
    with sessions.begin() as session:
        keys.rotate(session, issued.row.id)
    with sessions.begin() as session:
        keys.revoke(session, issued.row.id)
    with db.reading(sessions) as session:
        assert revision.changes_since(session, 0) == (3, set(), {issued.row.id})


def test_live_keys_can_be_asked_for_by_id(sessions: Sessions) -> None:
    one, two = _create(sessions), _create(sessions)
    with db.reading(sessions) as session:
        assert set(keys.active_keys(session)) == {one.row.id, two.row.id}
        assert set(keys.active_keys(session, {two.row.id, "nobody"})) == {two.row.id}


def test_keys_have_pages(sessions: Sessions) -> None:
    ids = sorted(_create(sessions).row.id for _ in range(5))
    seen, token = [], None
    while True:
        with db.reading(sessions) as session:
            page = keys.search(session, page_size=2, page_token=token)
        seen += [k.id for k in page.items]
        if (token := page.next_token) is None:
            break
    assert seen == ids


def test_the_first_start_makes_one_admin_key_in_a_file_of_its_owner(
    sessions: Sessions, tmp_path: Path
) -> None:
    file = tmp_path / "home" / "admin.key"
    for made in (True, False, False):
        with sessions.begin() as session:
            assert keys.ensure_admin_key(session, file) is made
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [p.name for p in file.parent.iterdir()] == ["admin.key"]
    found = _verify(sessions, file.read_text().strip())
    assert found is not None
    assert found.scopes == {"admin"}


def test_a_registry_that_has_keys_gets_no_admin_key(sessions: Sessions, tmp_path: Path) -> None:
    _create(sessions)
    with sessions.begin() as session:
        assert not keys.ensure_admin_key(session, tmp_path / "admin.key")
    assert not (tmp_path / "admin.key").exists()


def test_a_start_killed_between_file_and_commit_is_made_good_by_the_next(
    url: str, sessions: Sessions, tmp_path: Path
) -> None:
    file = tmp_path / "admin.key"
    killed(child_actions.make_admin_and_die, url, str(file))
    orphan = file.read_text()
    with db.reading(sessions) as session:
        assert session.scalars(select(KeyRow)).all() == []
    with sessions.begin() as session:
        assert keys.ensure_admin_key(session, file)
    assert file.read_text() != orphan
    assert _verify(sessions, orphan.strip()) is None
    assert _verify(sessions, file.read_text().strip()) is not None
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_a_killed_start_left_half_written_is_replaced(sessions: Sessions, tmp_path: Path) -> None:
    file = tmp_path / "admin.key"
    file.with_suffix(".partial").write_text("trv_half")
    with sessions.begin() as session:
        assert keys.ensure_admin_key(session, file)
    assert _verify(sessions, file.read_text().strip()) is not None
    assert not file.with_suffix(".partial").exists()
