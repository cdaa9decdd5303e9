"""Archives that the gate refuses before Keras opens them, and the reasons."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest

from registry.errors import Refused
from service.compiler.keras import keras_gate
from service.compiler.keras.keras_gate import check_archive
from service.compiler.keras.losses import OutputLoss, read_losses
from tests.service.compiler.keras.keras_models import archive

MB = 8192


def layer(class_name: str, module: str | None = "keras.layers", **config: Any) -> dict[str, Any]:
    return {
        "class_name": class_name,
        "module": module,
        "registered_name": None,
        "config": {"name": "it", **config},
    }


def model(*children: Any, **entries: Any) -> dict[str, Any]:
    return {
        "class_name": "Sequential",
        "module": "keras",
        "registered_name": None,
        "config": {"layers": list(children)},
        **entries,
    }


def reason(path: Path, memory_mb: int = MB) -> str:
    with pytest.raises(Refused) as error:
        check_archive(path, memory_mb)
    return str(error.value)


def test_keras_own_layers_pass_with_a_custom_loss(tmp_path: Path) -> None:
    loss = {"class_name": "MyLoss", "module": "mine", "config": {}}
    path = archive(tmp_path / "m", model(layer("Dense", units=3), compile_config={"loss": loss}))
    checked = check_archive(path, MB)
    assert (checked.keras_version, checked.losses.of("out", 0)) == ("3.15.1", OutputLoss())


def test_a_loss_from_logits_is_recognized(tmp_path: Path) -> None:
    loss = {
        "class_name": "SparseCategoricalCrossentropy",
        "module": "keras.losses",
        "config": {"from_logits": True},
    }
    checked = check_archive(archive(tmp_path / "m", model(compile_config={"loss": loss})), MB)
    assert checked.losses.of("out", 0) == OutputLoss(logits=True, exclusive=True)


@pytest.mark.parametrize(
    ("child", "message"),
    [
        (layer("Lambda"), "Lambda layer 'it', which runs Python code"),
        (
            layer("Dense", activation={"class_name": "__lambda__", "config": {"value": ""}}),
            "Lambda layer, which runs Python",
        ),
        (layer("TFSMLayer", filepath="/etc"), "TFSMLayer layer 'it', which runs code from outside Keras"),
        (layer("TorchModuleWrapper"), "TorchModuleWrapper"),
        (layer("Mine", "my_package.layers"), "my_package.layers.Mine 'it', a custom object"),
        (layer("run", "os"), "os.run 'it', a custom object"),
        (layer("Dense", None), "Dense 'it', a custom object"),
        (layer("Popen", "keras.src.utils.subprocess"), "keras.src.utils.subprocess.Popen"),
        (layer("utils.get_file", "keras"), "keras.utils.get_file"),
        ({**layer("Dense"), "registered_name": "mine>Dense"}, "custom object"),
        (
            layer(
                "Dense", activation={"class_name": "function", "config": "get_file", "module": "keras.utils"}
            ),
            "keras.utils.get_file",
        ),
        (layer("StringLookup", vocabulary="/etc/passwd"), "reads its vocabulary from a file, '/etc/passwd'"),
        (layer("Wrapper", layer={"deep": [[layer("Lambda")]]}), "Lambda layer 'it'"),
        (model(layer("Dense"), compile_config={"loss": layer("MyLoss", "mine")}), "mine.MyLoss"),
    ],
)
def test_custom_objects_are_refused_by_name(tmp_path: Path, child: Any, message: str) -> None:
    assert message in reason(archive(tmp_path / "m", model(child)))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"anything at all"])
def test_a_file_that_is_not_an_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    assert "truncated, damaged, or not a .keras archive" in reason(tmp_path / "m")


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    complete = archive(tmp_path / "m", model(), weights=bytes(range(256)) * 10)
    for share in (0.3, 0.9, 0.999):
        (tmp_path / "part").write_bytes(complete.read_bytes()[: int(complete.stat().st_size * share)])
        assert "truncated" in reason(tmp_path / "part")


def test_a_flipped_byte_of_the_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    with zipfile.ZipFile(archive(tmp_path / "a", model())) as source, zipfile.ZipFile(path, "w") as copy:
        for name in source.namelist():
            copy.writestr(name, source.read(name))  # uncompressed, as Keras writes it
    content = bytearray(path.read_bytes())
    content[content.index(b"weights", content.index(b"model.weights.h5") + 20)] ^= 1
    path.write_bytes(content)
    assert "model.weights.h5" in reason(path)


def test_an_archive_that_unpacks_to_more_than_half_the_memory_is_refused(tmp_path: Path) -> None:
    artifact = archive(tmp_path / "m", model(), weights=bytes(60 << 20))
    assert artifact.stat().st_size < 100_000
    assert reason(artifact, memory_mb=100) == (
        "the archive unpacks to 60 MB, more than 50 MB (half of TRIVIUM_BUILD_MEMORY_MB)"
    )


def test_a_path_outside_the_archive_is_refused(tmp_path: Path) -> None:
    assert "a path outside the archive" in reason(archive(tmp_path / "m", model(), **{"assets/../../x": b""}))


@pytest.mark.parametrize("config", ["[]", "{", "nothing", "[" * 100_000])
def test_a_configuration_that_is_not_a_json_object_is_refused(tmp_path: Path, config: str) -> None:
    assert "config.json is not " in reason(archive(tmp_path / "m", config))


def test_an_archive_of_keras_2_is_refused_with_a_hint(tmp_path: Path) -> None:
    assert "saved by Keras 2.12.0; save it with Keras 3" in reason(
        archive(tmp_path / "m", model(), version="2.12.0")
    )


def test_an_archive_without_weights_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m", "w") as file:
        file.writestr("config.json", "{}")
        file.writestr("saved/saved_model.pb", b"")
    assert "holds a SavedModel" in reason(tmp_path / "m")


def sizes(path: Path) -> list[int]:
    with zipfile.ZipFile(path) as file:
        return [e.file_size for e in file.infolist()]


def test_an_archive_may_unpack_to_exactly_half_the_memory(tmp_path: Path) -> None:
    small = sum(sizes(archive(tmp_path / "small", model(), weights=b"")))
    exact = archive(tmp_path / "exact", model(), weights=bytes((1 << 20) - small))
    assert sum(sizes(exact)) == 1 << 20
    check_archive(exact, memory_mb=2)
    check_archive(exact, memory_mb=3)  # half of it is rounded down
    beyond = archive(tmp_path / "beyond", model(), weights=bytes((1 << 20) - small + 1))
    assert "unpacks to 1 MB, more than 1 MB" in reason(beyond, memory_mb=2)


def test_an_archive_has_at_most_its_limit_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "m", model(), extra=b"")
    monkeypatch.setattr(keras_gate, "MAX_ENTRIES", 4)
    check_archive(path, MB)
    monkeypatch.setattr(keras_gate, "MAX_ENTRIES", 3)
    assert "the archive holds 4 files: more than 3" in reason(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_repeated_name_in_the_archive_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "m", model())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("config.json", "{}")
    assert "or duplicate names" in reason(path)


def test_a_configuration_of_exactly_the_limit_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive(tmp_path / "m", model(layer("Dense")))
    with zipfile.ZipFile(path) as file:
        size = file.getinfo("config.json").file_size
    monkeypatch.setattr(keras_gate, "MAX_CONFIG", size)
    check_archive(path, MB)
    monkeypatch.setattr(keras_gate, "MAX_CONFIG", size - 1)
    assert "config.json is larger than 0 MB" in reason(path)


@pytest.mark.parametrize("name", ["config.json", "metadata.json", "model.weights.h5"])
def test_an_archive_without_one_of_its_files_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m"
    with zipfile.ZipFile(archive(tmp_path / "a", model())) as source, zipfile.ZipFile(path, "w") as copy:
        for other in source.namelist():
            if other != name:
                copy.writestr(other, source.read(other))
    assert f"the archive lacks {name}" in reason(path)


@pytest.mark.parametrize(
    ("name", "refused"), [("/etc/x", True), ("a/../x", True), ("a\\..\\x", True), ("a..b", False)]
)
def test_names_of_files_stay_inside_the_archive(tmp_path: Path, name: str, refused: bool) -> None:
    path = archive(tmp_path / "m", model(), **{name: b""})
    if refused:
        assert "a path outside the archive" in reason(path)
    else:
        check_archive(path, MB)


@pytest.mark.parametrize(
    ("loss", "logits"),
    [
        ({"class_name": "BinaryCrossentropy", "config": {"from_logits": True}}, True),
        ({"class_name": "BinaryCrossentropy", "config": {"from_logits": False}}, False),
        ({"class_name": "BinaryCrossentropy", "config": {}}, False),
        ({"class_name": "Hinge", "config": {"from_logits": True}}, False),
        ("mse", False),
        (None, False),
    ],
)
def test_only_a_crossentropy_from_logits_makes_outputs_logits(
    tmp_path: Path, loss: Any, logits: bool
) -> None:
    path = archive(tmp_path / "m", model(compile_config={"loss": loss}))
    assert check_archive(path, MB).losses.of("out", 0).logits is logits


def test_the_losses_of_several_outputs_are_read_by_name_or_in_order() -> None:
    binary, classes = {"class_name": "BinaryCrossentropy", "config": {}}, "sparse_categorical_crossentropy"
    named = read_losses({"loss": {"tags": binary, "kind": classes}})
    assert (named.of("kind", 0), named.of("tags", 1)) == (OutputLoss(exclusive=True), OutputLoss(binary=True))
    ordered = read_losses({"loss": [classes, binary, None]})
    found = [ordered.of("any", index) for index in range(4)]
    assert found == [OutputLoss(exclusive=True), OutputLoss(binary=True), OutputLoss(), OutputLoss()]
    function = {"class_name": "function", "module": "builtins", "config": "binary_crossentropy"}
    assert read_losses({"loss": function}).of("any", 0).binary
