"""Files that are replaced as a whole."""

import pytest

from gradmix_jax import workdir as workdir_lib


def test_a_file_is_replaced_at_the_end_and_on_an_error_stays_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    for text in ("old", "new"):
        with workdir_lib.replacing(str(path)) as file:
            file.write(text)
            file.flush()
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(OSError, match="no space"), workdir_lib.replacing(str(path), "wb") as file:
        file.write(b"half")
        raise OSError("no space")
    assert path.read_text() == "new" and [each.name for each in tmp_path.iterdir()] == ["a.json"]
