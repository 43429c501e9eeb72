"""Files that a user put beside an exported model outlive the next export."""

from pathlib import Path

from espalier.models.own_files import LIST, carrying, foreign, kept_line, write_list


def folder(place: Path, *names: str) -> Path:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(f"{place.name} {name}")
    return place


def test_what_is_not_listed_is_carried_over(tmp_path: Path) -> None:
    old = folder(tmp_path / "old", "model.safetensors", "config.json", "gone.txt")
    write_list(old)
    folder(old, "x.gguf", "notes.json", "onnx/model.onnx", "LICENSE")
    (old / "link").symlink_to("nowhere")
    (old / "README.md").write_text("of a rule of its own")
    assert foreign(old) == ["LICENSE", "link", "notes.json", "onnx/model.onnx", "x.gguf"]
    new = folder(tmp_path / "new", "model.safetensors", "config.json", "LICENSE")
    carrying(old)(new)
    # The old folder is whole until it is replaced.
    assert (old / "x.gguf").read_text() == (new / "x.gguf").read_text() == "old x.gguf"
    assert (new / "onnx/model.onnx").is_file() and (new / "notes.json").is_file() and (new / "link").is_symlink()
    assert (new / "LICENSE").read_text() == "new LICENSE" and (new / "LICENSE.earlier").read_text() == "old LICENSE"
    assert (new / "config.json").read_text() == "new config.json" and not (new / "gone.txt").exists()
    assert foreign(new) == ["LICENSE.earlier", "link", "notes.json", "onnx/model.onnx", "x.gguf"]
    assert "kept LICENSE.earlier, link" in kept_line(new)


def test_without_a_list_names_tell(tmp_path: Path) -> None:
    for damaged in (False, True):
        old = folder(tmp_path / f"old{damaged}", "model.safetensors", "vocab.txt", "LICENSE", "x.gguf", "a/b.json")
        if damaged:
            (old / LIST).write_text('{"files": []}')
        assert foreign(old, folder(tmp_path / "new", "LICENSE")) == ["a/b.json", "x.gguf"]
