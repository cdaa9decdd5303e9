"""Which export a device gets: by alias, rollout percentage and LiteRT version."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote

import httpx
import msgspec
import pytest

from registry.errors import Conflict, NotFound
from service.edge.rollout import (
    exports_with_digest,
    parse_version,
    rollout_position,
    select_export,
    version_for,
)
from service.runtime.snapshot import SnapshotExport, SnapshotModel, SnapshotRollout, SnapshotState
from tests.service.api import check_problem
from tests.service.edge.conftest import Flag
from tests.service.edge.export_helpers import add_export, some_file, write_export

DEVICES = [f"device-{n}" for n in range(2000)]


def model(percent: int, previous: int | None = 1, alias: str = "champion") -> SnapshotModel:
    return SnapshotModel("flag", aliases={alias: 2}, rollouts={alias: SnapshotRollout(percent, previous)})


def devices_in_rollout(percent: int, alias: str = "champion") -> set[str]:
    return {d for d in DEVICES if version_for(model(percent, alias=alias), alias, d) == 2}


def test_a_device_has_the_same_position_on_every_replica() -> None:
    assert [rollout_position(d, "flag", "champion") for d in ("a", "b", "pi-0042", "ü")] == [35, 20, 52, 41]


def test_the_share_of_devices_is_close_to_the_percentage() -> None:
    assert [len(devices_in_rollout(p)) / len(DEVICES) for p in (0, 100)] == [0, 1]
    for percent in (1, 10, 50, 90):
        assert len(devices_in_rollout(percent)) / len(DEVICES) == pytest.approx(percent / 100, abs=0.03)


def test_raising_the_percentage_only_adds_devices() -> None:
    for lower in range(0, 100, 5):
        assert devices_in_rollout(lower) <= devices_in_rollout(lower + 5)


def test_rollouts_of_other_aliases_and_models_start_with_other_devices() -> None:
    assert devices_in_rollout(10) != devices_in_rollout(10, "challenger")
    assert len(devices_in_rollout(10) & devices_in_rollout(10, "challenger")) < len(DEVICES) * 0.03
    assert {d for d in DEVICES if rollout_position(d, "a", "b") < 10} != {
        d for d in DEVICES if rollout_position(d, "b", "a") < 10
    }


@pytest.mark.parametrize(("percent", "version"), [(0, 1), (34, 1), (35, 1), (36, 2), (99, 2), (100, 2)])
def test_a_device_is_in_the_rollout_when_its_position_is_below_the_percentage(
    percent: int, version: int
) -> None:
    assert rollout_position("a", "flag", "champion") == 35
    assert version_for(model(percent), "champion", "a") == version


def test_the_last_device_joins_at_100_percent_and_the_first_at_1_percent() -> None:
    by_position = {rollout_position(d, "flag", "champion"): d for d in DEVICES}
    assert set(by_position) == set(range(100))
    assert [version_for(model(p), "champion", by_position[99]) for p in (99, 100)] == [1, 2]
    assert [version_for(model(p), "champion", by_position[0]) for p in (0, 1)] == [1, 2]


@pytest.mark.parametrize("device", [None, "", "a"])
def test_without_a_rollout_every_device_gets_the_version_of_the_alias(device: str | None) -> None:
    assert version_for(SnapshotModel("flag", aliases={"champion": 2}), "champion", device) == 2


@pytest.mark.parametrize("device", [None, ""])
def test_a_device_without_an_id_gets_the_version_at_100_percent(device: str | None) -> None:
    assert version_for(model(99), "champion", device) == 1
    assert version_for(model(100), "champion", device) == 2


def test_without_a_previous_version_devices_outside_the_rollout_get_404() -> None:
    with pytest.raises(NotFound, match=r"version 2 is rolled out to 0 % of the devices"):
        version_for(model(0, previous=None), "champion", "a")


@pytest.mark.parametrize(
    ("lower", "higher"),
    [("2.9", "2.10"), ("1.99.99", "2"), ("2.1.0", "2.1.1"), ("2.1", "2.1.1"), ("1.4.0", "1.10.0")],
)
def test_versions_are_compared_as_parse_version(lower: str, higher: str) -> None:
    assert parse_version(lower) < parse_version(higher)


@pytest.mark.parametrize(
    "version", ["2.1", "2.1.0", "v2.1", "2.1.0rc1", "2.1.0.dev20260101", "2.1.0-nightly"]
)
def test_trailing_zeros_and_suffixes_are_ignored(version: str) -> None:
    assert parse_version(version) == parse_version("2.1")


@pytest.mark.parametrize("version", [None, "", "0", "0.0", "v0", "unknown"])
def test_a_version_without_numbers_is_below_all_others(version: str | None) -> None:
    assert parse_version(version) == ()
    assert parse_version(version) < parse_version("0.0.1")


def test_an_error_names_the_unknown_alias_or_the_missing_export() -> None:
    state = SnapshotState(1, {"flag": model(100)}, {})
    for device in (None, "a"):
        with pytest.raises(NotFound, match="no alias 'flag@shop'"):
            version_for(state.models["flag"], "shop", device)
        with pytest.raises(NotFound, match="no alias 'flag@shop'"):
            select_export(state, "flag", "shop", "none", device, None)
    with pytest.raises(NotFound, match="POST /v1/models/flag/versions/2/exports"):
        select_export(state, "flag", "champion", "none", None, None)


@pytest.mark.anyio
async def test_promote_and_rollback_change_the_latest_file_at_once(flag: Flag) -> None:
    assert await flag.latest() == 1
    for _ in range(3):
        await flag.promote(2)
        assert await flag.latest() == 2
        await flag.rollback()
        assert await flag.latest() == 1


@pytest.mark.anyio
async def test_a_device_gets_the_same_version_during_a_rollout(flag: Flag) -> None:
    await flag.promote(1)
    await flag.promote(2, 30)
    expected = {d: 2 if rollout_position(d, "flag", "champion") < 30 else 1 for d in DEVICES[:50]}
    for _ in range(2):
        assert {d: await flag.latest(d) for d in expected} == expected
    assert await flag.latest() == 1
    await flag.promote(2, 100)
    assert {await flag.latest(d) for d in expected} == {2}
    assert await flag.latest() == 2


@pytest.mark.anyio
async def test_the_manifest_and_the_file_have_the_same_version(flag: Flag) -> None:
    await flag.promote(2, 30)
    for device in DEVICES[:20]:
        answer = await flag.api.client.get("/v1/edge/flag", headers={"X-Device-Id": device})
        assert answer.json()["version"] == await flag.latest(device)
        assert "X-Device-Id" in answer.headers["vary"]


@pytest.mark.anyio
async def test_devices_outside_a_rollout_never_get_a_version_that_was_rolled_out_partially(
    flag: Flag,
) -> None:
    version_3 = await flag.api.client.post(
        "/v1/models/flag/versions",
        json={
            k: v
            for k, v in (await flag.api.client.get("/v1/models/flag/versions/1")).json().items()
            if k in ("artifact", "format", "example")
        },
    )
    await flag.api.wait_for_build(version_3.headers["location"])
    flag.files[3] = add_export(flag.api.services, some_file(3), version=3)
    await flag.promote(2, 10)
    await flag.promote(3, 10)
    assert {await flag.latest(d) for d in DEVICES[:50]} == {1, 3}


@pytest.mark.anyio
async def test_a_device_in_the_rollout_gets_404_when_the_version_has_no_export(flag: Flag) -> None:
    """A fallback to an older version would be an unrequested rollback."""
    add_export(flag.api.services, b"small", version=1, quantize="float16")
    await flag.promote(2, 50)
    for device in DEVICES[:20]:
        answer = await flag.api.client.get(
            "/v1/edge/flag/latest.tflite?quantize=float16", headers={"X-Device-Id": device}
        )
        if rollout_position(device, "flag", "champion") < 50:
            assert "version 2 has none" in check_problem(answer, 404)["detail"]
        else:
            assert answer.content == b"small"


@pytest.mark.anyio
async def test_a_device_gets_the_newest_export_that_runs_on_its_runtime(flag: Flag) -> None:
    path = "/v1/edge/flag/latest.tflite?quantize=dynamic"
    for content, min_runtime in ((b"old", "1.5.0"), (b"middle", "2.9.0"), (b"new", "2.10.0")):
        add_export(flag.api.services, content, quantize="dynamic", min_runtime=min_runtime)
    for runtime, expected in [
        (None, b"new"),
        ("2.10.0", b"new"),
        ("2.11", b"new"),
        ("2.9.5", b"middle"),
        ("2.9", b"middle"),
        ("2.0.0", b"old"),
        ("1.5", b"old"),
        ("v1.5.0rc2", b"old"),
    ]:
        headers = {} if runtime is None else {"X-Runtime-Version": runtime}
        answer = await flag.api.client.get(path, headers=headers)
        assert (answer.content, runtime) == (expected, runtime)
    problem = check_problem(await flag.api.client.get(path, headers={"X-Runtime-Version": "1.4.9"}), 409)
    assert problem["detail"].endswith("requires LiteRT 1.5.0 or newer; this device has 1.4.9")
    for invalid in ("new", "", "2.1 or so", "9" * 100):
        check_problem(await flag.api.client.get(path, headers={"X-Runtime-Version": invalid}), 422)


@pytest.mark.anyio
async def test_an_export_without_a_minimum_runtime_runs_on_every_runtime(flag: Flag) -> None:
    add_export(flag.api.services, b"any", quantize="int8", min_runtime=None)
    answer = await flag.api.client.get(
        "/v1/edge/flag/latest.tflite?quantize=int8", headers={"X-Runtime-Version": "0.1"}
    )
    assert (answer.content, "x-min-runtime" in answer.headers) == (b"any", False)


@pytest.mark.anyio
async def test_a_device_with_another_alphabet_is_in_the_rollout_by_its_name(flag: Flag) -> None:
    names = [f"m\u00fcller {n}" for n in range(8)]
    await flag.promote(2, 50)
    versions = [2 if rollout_position(n, "flag", "champion") < 50 else 1 for n in names]
    assert {*versions} == {1, 2}
    assert [await flag.latest(quote(n)) for n in names] == versions
    utf8 = httpx.Headers([(b"X-Device-Id", b"m\xc3\xbc")])
    problem = check_problem(await flag.api.client.get("/v1/edge/flag", headers=utf8), 422)
    assert "percent-encoded" in problem["errors"][0]["message"]


@pytest.mark.anyio
async def test_a_too_long_device_id_is_rejected(flag: Flag) -> None:
    check_problem(await flag.api.client.get("/v1/edge/flag", headers={"X-Device-Id": "x" * 201}), 422)


def export(number: int, min_runtime: str | None, quantize: str = "none", sha256: str = "") -> SnapshotExport:
    return SnapshotExport(
        number, 2, quantize, sha256 or f"{number:064x}", 1, None, min_runtime, datetime.now(UTC)
    )


def test_the_newest_export_whose_runtime_is_not_above_the_devices_is_selected() -> None:
    exports = [export(4, "2.0", "int8"), export(3, "2.10"), export(2, "2.9"), export(1, "2.9")]
    flag = msgspec.structs.replace(model(100), exports={2: exports, 1: [export(9, None)]})
    state = SnapshotState(1, {"flag": flag}, {})

    def selected(runtime: str | None, quantize: str = "none") -> int:
        return select_export(state, "flag", "champion", quantize, None, runtime).id

    runtimes = [None, "2.11", "2.10", "2.10.0", "2.9.99", "2.9"]
    assert [selected(r) for r in runtimes] == [3, 3, 3, 3, 2, 2]
    assert selected("2", "int8") == 4
    with pytest.raises(
        Conflict, match=r"flag:2 with quantize 'none' requires LiteRT 2\.9 or newer.* 2\.8\.99$"
    ):
        selected("2.8.99")
    with pytest.raises(Conflict, match=r"requires LiteRT 2\.0 or newer"):
        selected("1.99", "int8")
    with pytest.raises(NotFound, match="quantize 'float16'"):
        selected(None, "float16")


def test_a_digest_selects_the_newest_export_of_each_model() -> None:
    def state(*exports: SnapshotExport) -> SnapshotState:
        flag = SnapshotModel("flag", exports={2: list(exports)})
        price = SnapshotModel("price", exports={1: [export(9, None, sha256="a")]})
        return SnapshotState(1, {"flag": flag, "price": price}, {})

    def ids(state: SnapshotState, sha256: str) -> dict[str, int]:
        return {name: found.id for name, found in exports_with_digest(state, sha256).items()}

    first = state(export(3, None, sha256="a"), export(2, None, sha256="b"), export(1, None, sha256="a"))
    assert ids(first, "a") == {"flag": 3, "price": 9}
    assert (ids(first, "b"), ids(first, "c")) == ({"flag": 2}, {})
    assert ids(state(export(4, None, sha256="b")), "b") == {"flag": 4}, "of the other state"
    assert ids(first, "b") == {"flag": 2}
    assert exports_with_digest(first, "a") is exports_with_digest(first, "a"), "the index is kept"


def test_an_error_names_the_unknown_model() -> None:
    with pytest.raises(NotFound, match="model 'other'"):
        select_export(SnapshotState(1, {}, {}), "other", "champion", "none", None, None)


@pytest.mark.anyio
async def test_an_export_of_another_process_is_available_at_once(flag: Flag) -> None:
    """Its record is `ready` after the commit: a client that has read it must not get 404."""
    services = flag.api.services
    services.snapshot.stop()  # from here on it is not updated in the background
    url = "/v1/edge/flag/latest.tflite?quantize=float16"
    check_problem(await flag.api.client.get(url), 404)
    file = write_export(services.sessions, services.store, some_file(3), quantize="float16")
    assert (await flag.api.client.get(url)).content == file.content
    file = write_export(services.sessions, services.store, some_file(4), quantize="dynamic")
    manifest = (await flag.api.client.get("/v1/edge/flag?quantize=dynamic")).json()
    assert manifest["sha256"] == file.sha256
    file = write_export(services.sessions, services.store, some_file(5), quantize="int8")
    assert (await flag.api.client.get(f"/v1/blobs/{file.sha256}")).content == file.content
