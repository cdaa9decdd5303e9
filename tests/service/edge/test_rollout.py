"""Which version a device gets: at once what the alias says, or on its side of a rollout; on its runtime."""

from __future__ import annotations

import pytest

from registry.errors import NotFound
from service.edge.rollout import export_for, numbers, place, version_for
from service.runtime.snapshot import Model, Rollout, State
from tests.service.api import refused
from tests.service.edge.conftest import Flag
from tests.service.edge.exported import add_export, some_file, write_export

DEVICES = [f"device-{n}" for n in range(2000)]


def model(percent: int, previous: int | None = 1, alias: str = "champion") -> Model:
    return Model("flag", aliases={alias: 2}, rollouts={alias: Rollout(percent, previous)})


def updated(percent: int, name: str = "champion") -> set[str]:
    return {d for d in DEVICES if version_for(model(percent, alias=name), name, d) == 2}


def test_a_device_has_the_same_place_on_every_replica() -> None:
    assert [place(d, "flag", "champion") for d in ("a", "b", "pi-0042", "ü")] == [35, 20, 52, 41]


def test_the_share_of_devices_is_about_what_was_asked_for() -> None:
    assert [len(updated(p)) / len(DEVICES) for p in (0, 100)] == [0, 1]
    for percent in (1, 10, 50, 90):
        assert len(updated(percent)) / len(DEVICES) == pytest.approx(percent / 100, abs=0.03)


def test_raising_the_share_only_adds_devices() -> None:
    for lower in range(0, 100, 5):
        assert updated(lower) <= updated(lower + 5)


def test_other_aliases_and_models_begin_with_other_devices() -> None:
    assert updated(10) != updated(10, "challenger")
    assert len(updated(10) & updated(10, "challenger")) < len(DEVICES) * 0.03
    assert {d for d in DEVICES if place(d, "a", "b") < 10} != {d for d in DEVICES if place(d, "b", "a") < 10}


@pytest.mark.parametrize("device", [None, ""])
def test_a_device_without_a_name_waits_for_the_end_of_the_rollout(device: str | None) -> None:
    assert version_for(model(99), "champion", device) == 1
    assert version_for(model(100), "champion", device) == 2


def test_with_no_version_before_it_the_others_get_none() -> None:
    with pytest.raises(NotFound, match=r"version 2 is for 0 % of the devices"):
        version_for(model(0, previous=None), "champion", "a")


@pytest.mark.parametrize(
    ("lower", "higher"),
    [("2.9", "2.10"), ("1.99.99", "2"), ("2.1.0", "2.1.1"), ("2.1", "2.1.1"), ("1.4.0", "1.10.0")],
)
def test_versions_are_compared_as_numbers(lower: str, higher: str) -> None:
    assert numbers(lower) < numbers(higher)


@pytest.mark.parametrize("same", ["2.1", "2.1.0", "v2.1", "2.1.0rc1", "2.1.0.dev20260101", "2.1.0-nightly"])
def test_zeros_at_the_end_and_what_follows_the_numbers_make_no_difference(same: str) -> None:
    assert numbers(same) == numbers("2.1")


def test_an_alias_that_is_not_there_is_named() -> None:
    state = State(1, {"flag": model(100)}, {})
    with pytest.raises(NotFound, match="flag@shop"):
        export_for(state, "flag", "shop", "none", None, None)
    with pytest.raises(NotFound, match="POST /v1/models/flag/versions/2/exports"):
        export_for(state, "flag", "champion", "none", None, None)


@pytest.mark.anyio
async def test_promoting_and_rolling_back_move_what_latest_means_at_once(flag: Flag) -> None:
    assert await flag.latest() == 1
    for _ in range(3):
        await flag.promote(2)
        assert await flag.latest() == 2
        await flag.rollback()
        assert await flag.latest() == 1


@pytest.mark.anyio
async def test_every_device_stays_on_its_side_of_a_rollout(flag: Flag) -> None:
    await flag.promote(1)
    await flag.promote(2, 30)
    expected = {d: 2 if place(d, "flag", "champion") < 30 else 1 for d in DEVICES[:50]}
    for _ in range(2):
        assert {d: await flag.latest(d) for d in expected} == expected
    assert await flag.latest() == 1
    await flag.promote(2, 100)
    assert {await flag.latest(d) for d in expected} == {2}
    assert await flag.latest() == 2


@pytest.mark.anyio
async def test_the_manifest_and_the_file_are_of_the_same_side(flag: Flag) -> None:
    await flag.promote(2, 30)
    for device in DEVICES[:20]:
        answer = await flag.api.client.get("/v1/edge/flag", headers={"X-Device-Id": device})
        assert answer.json()["version"] == await flag.latest(device)
        assert "X-Device-Id" in answer.headers["vary"]


@pytest.mark.anyio
async def test_the_others_never_get_a_version_that_was_only_tried(flag: Flag) -> None:
    third = await flag.api.client.post(
        "/v1/models/flag/versions",
        json={
            k: v
            for k, v in (await flag.api.client.get("/v1/models/flag/versions/1")).json().items()
            if k in ("artifact", "format", "example")
        },
    )
    await flag.api.built(third.headers["location"])
    flag.files[3] = add_export(flag.api.services, some_file(3), version=3)
    await flag.promote(2, 10)
    await flag.promote(3, 10)
    assert {await flag.latest(d) for d in DEVICES[:50]} == {1, 3}


@pytest.mark.anyio
async def test_a_version_without_an_export_has_none_for_anybody_in_its_share(flag: Flag) -> None:
    """Falling back to an older version would be a rollback that nobody asked for."""
    add_export(flag.api.services, b"small", version=1, quantize="float16")
    await flag.promote(2, 50)
    for device in DEVICES[:20]:
        answer = await flag.api.client.get(
            "/v1/edge/flag/latest.tflite?quantize=float16", headers={"X-Device-Id": device}
        )
        if place(device, "flag", "champion") < 50:
            assert "version 2 has none" in refused(answer, 404)["detail"]
        else:
            assert answer.content == b"small"


@pytest.mark.anyio
async def test_a_device_gets_the_newest_export_that_its_runtime_can_run(flag: Flag) -> None:
    path = "/v1/edge/flag/latest.tflite?quantize=dynamic"
    for content, runtime in ((b"old", "1.5.0"), (b"middle", "2.9.0"), (b"new", "2.10.0")):
        add_export(flag.api.services, content, quantize="dynamic", min_runtime=runtime)
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
    problem = refused(await flag.api.client.get(path, headers={"X-Runtime-Version": "1.4.9"}), 409)
    assert problem["detail"].endswith("needs LiteRT 1.5.0 or newer; this device has 1.4.9")
    for odd in ("new", "", "2.1 or so", "9" * 100):
        refused(await flag.api.client.get(path, headers={"X-Runtime-Version": odd}), 422)


@pytest.mark.anyio
async def test_an_export_that_names_no_runtime_runs_on_all(flag: Flag) -> None:
    add_export(flag.api.services, b"any", quantize="int8", min_runtime=None)
    answer = await flag.api.client.get(
        "/v1/edge/flag/latest.tflite?quantize=int8", headers={"X-Runtime-Version": "0.1"}
    )
    assert (answer.content, "x-min-runtime" in answer.headers) == (b"any", False)


@pytest.mark.anyio
async def test_a_device_id_that_is_too_long_is_refused(flag: Flag) -> None:
    refused(await flag.api.client.get("/v1/edge/flag", headers={"X-Device-Id": "x" * 201}), 422)


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(NotFound, match="model 'other'"):
        export_for(State(1, {}, {}), "other", "champion", "none", None, None)


@pytest.mark.anyio
async def test_an_export_that_another_process_has_made_is_pulled_at_once(flag: Flag) -> None:
    """Its record says `ready` as soon as that is committed: whoever has read it must not be sent away."""
    services = flag.api.services
    services.snapshot.stop()  # it hears of nothing by itself from here on
    pull = "/v1/edge/flag/latest.tflite?quantize=float16"
    refused(await flag.api.client.get(pull), 404)
    made = write_export(services.sessions, services.store, some_file(3), quantize="float16")
    assert (await flag.api.client.get(pull)).content == made.content
    made = write_export(services.sessions, services.store, some_file(4), quantize="dynamic")
    manifest = (await flag.api.client.get("/v1/edge/flag?quantize=dynamic")).json()
    assert manifest["sha256"] == made.sha256
    made = write_export(services.sessions, services.store, some_file(5), quantize="int8")
    assert (await flag.api.client.get(f"/v1/blobs/{made.sha256}")).content == made.content
