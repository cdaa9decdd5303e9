"""One-shot children: results, limits, crashes, and children that are killed from outside."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from registry.build_messages import BuildRequest, BuildResult
from registry.errors import StaleTask
from registry.rows import Rows
from service.builds import oneshot
from service.builds.forkserver import ForkServer
from service.builds.protocol import BUILD
from service.runtime.onnx_runtime import OnnxRuntime
from tests.service.builds.misbehaving_models import (
    AllocatesTooMuch,
    CrashesOnLoad,
    ExitsOnLoad,
    MisbehavingModel,
    SlowToLoad,
    WaitsOnLoad,
)
from tests.service.builds.processes import alive, read_when_written, wait_for_end
from tests.service.builds.small_template import pid_file

RequestFor = Callable[..., BuildRequest]


@pytest.fixture
def request_for(tmp_path: Path) -> RequestFor:
    def request_for(model: Any, **kwargs: Any) -> BuildRequest:
        artifact, out = tmp_path / "model.joblib", tmp_path / "out"
        out.mkdir()
        joblib.dump(model, artifact)
        return BuildRequest(artifact=str(artifact), format="sklearn-joblib", out=str(out), **kwargs)

    return request_for


def fitted(model: MisbehavingModel) -> MisbehavingModel:
    return model.fit([[0.0], [1.0]], [0.0, 1.0])


def no_heartbeat() -> None:
    pass


def reason(built: BuildResult) -> str:
    assert built.state == "rejected"
    return str(built.report["reason"])


def test_a_built_forest_answers_as_the_estimator_does(
    shared_forks: ForkServer, request_for: RequestFor
) -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(200, 5)).astype(np.float32)
    model = RandomForestClassifier(10, random_state=0).fit(X, X[:, 0] > 0)
    request = request_for(model)
    built = oneshot.run(shared_forks, BUILD, request, 60, no_heartbeat)
    assert (built.state, built.runtime) == ("ready", "onnx"), built.report
    assert built.servable is not None
    assert built.signature is not None
    outputs = OnnxRuntime(Path(request.out, built.servable), built.signature).run(
        Rows(matrix=X.astype(np.float64))
    )
    assert outputs["label"].tolist() == model.predict(X).tolist()


def test_a_build_that_exceeds_its_time_limit_is_rejected_and_its_process_ended(
    shared_forks: ForkServer, request_for: RequestFor, tmp_path: Path
) -> None:
    file = tmp_path / "pid"
    built = oneshot.run(shared_forks, BUILD, request_for(fitted(WaitsOnLoad(str(file)))), 1.0, no_heartbeat)
    assert reason(built) == "the build was ended after 1 s (TRIVIUM_BUILD_TIMEOUT_S)"
    assert not alive(int(file.read_text()))


def test_a_build_that_exceeds_its_memory_limit_is_rejected(
    shared_forks: ForkServer, request_for: RequestFor
) -> None:
    built = oneshot.run(
        shared_forks, BUILD, request_for(fitted(AllocatesTooMuch()), memory_mb=1024), 60, no_heartbeat
    )
    assert "emory" in reason(built)


def test_a_build_that_crashes_its_process_is_rejected(
    shared_forks: ForkServer, request_for: RequestFor
) -> None:
    built = oneshot.run(shared_forks, BUILD, request_for(fitted(CrashesOnLoad())), 60, no_heartbeat)
    assert "crashed with SIGSEGV: the model is damaged" in reason(built)
    assert "ended" not in built.report, "a build without conversion would be tried and might succeed"


def test_a_build_that_exits_is_rejected(shared_forks: ForkServer, request_for: RequestFor) -> None:
    built = oneshot.run(shared_forks, BUILD, request_for(fitted(ExitsOnLoad())), 60, no_heartbeat)
    assert "exit code 3" in reason(built)


@pytest.mark.parametrize("process_name", ["child", "template"])
def test_a_build_that_is_killed_from_outside_raises_child_lost(
    own_forks: ForkServer, request_for: RequestFor, process_name: str
) -> None:
    request = request_for(fitted(MisbehavingModel()))
    with ThreadPoolExecutor(1) as threads:
        building = threads.submit(oneshot.run, own_forks, BUILD, request, 60, no_heartbeat)
        child = int(read_when_written(pid_file(request.artifact)))
        pid = child if process_name == "child" else own_forks.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        error = building.exception(timeout=10)
    assert isinstance(error, oneshot.ChildLost)
    assert process_name == "template" or "memory ran out" in str(error)
    assert wait_for_end(child)


def test_an_error_of_the_heartbeat_ends_the_build_at_once(
    shared_forks: ForkServer, request_for: RequestFor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oneshot, "BEAT_INTERVAL_S", 0.1)

    def beat() -> None:
        raise StaleTask(1)

    began = time.monotonic()
    with pytest.raises(StaleTask):
        oneshot.run(shared_forks, BUILD, request_for(fitted(SlowToLoad())), 60, beat)
    assert time.monotonic() - began < 30  # loading takes 60
