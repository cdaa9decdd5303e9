from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from tests.service.compiler.keras.keras_models import Published


@pytest.fixture(autouse=True, scope="session")
def one_thread_per_library() -> Iterator[None]:
    """As in a build child: on a busy machine OpenMP's threads wait for each other and spin."""
    with threadpool_limits(limits=1):
        yield


@pytest.fixture(scope="session")
def published_cnn(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """A Keras model of handwritten digits, built with an example. Converting it takes a second."""
    from tests.service.compiler.keras import keras_models  # imports TensorFlow

    return keras_models.published_cnn(tmp_path_factory.mktemp("cnn"))
