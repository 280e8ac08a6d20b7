"""Files of a run: atomic writes, paths, and the recorded commit."""

import os
import shutil
import subprocess
import sys

import pytest

from gradmix_jax import workdir as workdir_lib


def test_a_file_is_replaced_at_the_end_and_unchanged_on_an_error(tmp_path):
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


def test_a_path_is_expanded_and_made_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert workdir_lib.resolve("~/runs/a") == str(tmp_path / "runs" / "a")
    assert workdir_lib.resolve("runs/../b/") == str(tmp_path / "b")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "--workdir must be a directory, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, got ''"),
        ("runs/lr[0.1]", r"--workdir must not have \[ \] in its absolute path"),
        ("what?/run", r"--workdir must not have \? in its absolute path"),
        (__file__, "--workdir must be a directory, got the file"),
        (f"{__file__}/a/run", "--workdir must be a directory, got '.*/a/run', which is below the file"),
        ("~nobody_here/run", "got '~nobody_here/run': there is no home directory ~nobody_here"),
    ],
)
def test_a_path_that_cannot_hold_a_run_is_refused(path, said):
    with pytest.raises(ValueError, match=said):
        workdir_lib.resolve(path)


def test_the_commit_of_another_project_is_not_used(tmp_path):
    """A copy of the package inside a repository that does not track it has no commit unless it is given one."""
    git = lambda *words: subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)
    git("init", "-q")
    (tmp_path / "theirs.txt").write_text("x")
    git("add", "theirs.txt")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "theirs")
    package = tmp_path / "site" / "gradmix_jax"
    package.mkdir(parents=True)
    ours = os.path.dirname(os.path.dirname(workdir_lib.__file__))
    shutil.copy(os.path.join(ours, "__init__.py"), package)
    shutil.copytree(os.path.join(ours, "workdir"), package / "workdir")
    code = "from gradmix_jax import workdir; print(workdir.commit())"
    given = {name: value for name, value in os.environ.items() if name != "GRADMIX_JAX_COMMIT"}
    environment = given | {"PYTHONPATH": str(package.parent)}
    run = lambda env: subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path
    )
    assert run(environment).stdout.strip() == "('', False)"
    assert run(environment | {"GRADMIX_JAX_COMMIT": "12ab+"}).stdout.strip() == "('12ab', True)"
