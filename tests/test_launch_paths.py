"""Workdirs that a shell, mkdir, scp or Slurm could misread: every launcher passes on one word, or prints one line."""

import shlex

import pytest
from fake_checkout import assert_refused

CONFIG = "--config=configs/tiny.py"
SLICE = ["--name=pod", "--zone=us-west4-a"]
# Workdir -> what the main job is given.
HOSTILE = {
    "runs/a b": "runs/a b",
    "runs/it's": "runs/it's",
    'runs/"a"': 'runs/"a"',
    "runs/$(touch pwned)`touch pwned`": "runs/$(touch pwned)`touch pwned`",
    "runs/a;touch pwned&|<>!#": "runs/a;touch pwned&|<>!#",
    "runs/$HOME{a,b}": "runs/$HOME{a,b}",
    "runs/100%j": "runs/100%j",
    "runs/Ünïcode": "runs/Ünïcode",
    "-rf": "./-rf",
    "--help": "./--help",
    "~/runs": "{home}/runs",
}
REFUSED = {
    "runs/a\nb": "line break",
    "runs/a\n": "line break",
    "runs/a\x1b[31m": "control character",
    "runs/a[0]": "must not have [ ] * or ?",
    "runs/*": "must not have [ ] * or ?",
    "ftp://host/run": "must be a folder",
    "gs://bucket": "must be a folder",
    "~nobody/runs": "home directory of another user",
}


def shown(workdir):
    return repr(workdir)[1:-1]


@pytest.fixture(params=HOSTILE, ids=shown)
def workdir(request):
    return request.param


def expected(checkout, workdir):
    return HOSTILE[workdir].replace("{home}", str(checkout.root))


def assert_made(checkout, workdir):
    """The folder exists, and no command inside a name was run."""
    assert (checkout.root / expected(checkout, workdir)).is_dir()
    assert not list(checkout.root.rglob("pwned")) and not (checkout.root / "~").exists()


def test_local(checkout, workdir):
    checkout.fake_python()
    result = checkout.run("bash", "launch/local.sh", CONFIG, f"--workdir={workdir}", FAKE_PYTHON_OUTPUT="hello")
    assert result.returncode == 0, result.stderr
    # As it was given: the main job reads ~ and dashes itself.
    assert checkout.calls()[-1][-1] == f"--workdir={workdir}"
    assert_made(checkout, workdir)
    assert (checkout.root / expected(checkout, workdir) / "log.txt").read_text() == "hello\n"


def test_slurm(checkout, workdir):
    """Up to what Slurm would execute on a node, with an srun that only records."""
    for name in ("sbatch", "srun"):
        checkout.fake(name)
    checkout.fake_python()
    result = checkout.run("bash", "launch/slurm.sh", CONFIG, f"--workdir={workdir}")
    assert result.returncode == 0, result.stderr
    (submitted,) = checkout.calls()
    (log,) = (word.removeprefix("--output=") for word in submitted if word.startswith("--output="))
    # As Slurm reads it, %j is the job's number and %% is %.
    read = log.replace("%%", "\0").replace("%j", "7").replace("\0", "%")
    assert read == f"{expected(checkout, workdir)}/slurm-7.log"
    assert_made(checkout, workdir)
    assert checkout.run("bash", "-c", submitted[-1].removeprefix("--wrap=")).returncode == 0
    assert checkout.calls()[-1][-1] == f"--workdir={expected(checkout, workdir)}"
    assert_made(checkout, workdir)
    printed = result.stdout.splitlines()
    assert [shlex.split(line) for line in printed[:2]] == [["mkdir", "-p", expected(checkout, workdir)], submitted]


@pytest.mark.parametrize("workdir", ["runs/x_1.a@b%c+d=e,f", "-rf", "/mnt/runs/x"])
def test_tpu_pod_takes_what_scp_takes(checkout, workdir):
    checkout.fake("gcloud")
    job = [CONFIG, f"--workdir={workdir}"]
    result = checkout.run("bash", "launch/tpu_pod.sh", "all", *SLICE, "--type=v4-8", *job)
    assert result.returncode == 0, result.stderr
    *_, started, fetched = checkout.calls()
    given = f"./{workdir}" if workdir.startswith("-") else workdir
    assert shlex.split(started[-1].removeprefix("--command="))[-1] == f"--workdir={given}"
    source = given if given.startswith("/") else f"gradmix_jax/{given}"
    assert fetched[4:7] == ["scp", "--recurse", f"pod:{source}"]


def test_tpu_pod_refuses_others_before_anything_is_paid_for(checkout, workdir):
    checkout.fake("gcloud")
    words = ["all", *SLICE, "--type=v4-8", CONFIG] if "$" in workdir else ["fetch", *SLICE]
    result = checkout.run("bash", "launch/tpu_pod.sh", *words, f"--workdir={workdir}")
    if HOSTILE[workdir].startswith("./") or workdir == "runs/100%j":
        assert result.returncode == 0, result.stderr
    else:
        assert_refused(result, "letters, digits and", "scp has to fetch it")
        assert checkout.calls() == []


@pytest.mark.parametrize("script", ["local", "slurm", "tpu_pod"])
@pytest.mark.parametrize("workdir", REFUSED, ids=shown)
def test_what_no_launcher_takes(checkout, script, workdir):
    for name in ("sbatch", "gcloud"):
        checkout.fake(name)
    checkout.fake_python()
    words = ["all", *SLICE, "--type=v4-8"] if script == "tpu_pod" else []
    result = checkout.run("bash", f"launch/{script}.sh", *words, CONFIG, f"--workdir={workdir}")
    assert_refused(result, "--workdir='")
    if script != "tpu_pod":
        assert REFUSED[workdir] in result.stderr
    assert checkout.calls() == [] and not (checkout.root / "runs").exists()


def test_accelerator_plan(checkout, workdir):
    words = ["--dry_run", "--tiny_imagenet=folder:x", f"--workdir={workdir}"]
    result = checkout.run("bash", "launch/accelerator.sh", *words)
    assert result.returncode == 0, result.stderr
    printed = [shlex.split(line) for line in result.stdout.splitlines() if not line.startswith("#")]
    assert ["mkdir", "-p", expected(checkout, workdir)] in printed
    runs = [words[-1] for words in printed if "gradmix_jax.protocol" in words]
    assert runs[0] == f"--workdir={expected(checkout, workdir)}/cifar10/none"


@pytest.mark.parametrize("script", ["local", "slurm"])
def test_a_file_or_a_dangling_link_is_no_workdir(checkout, script):
    checkout.fake("sbatch")
    (checkout.root / "file").write_text("x")
    (checkout.root / "link").symlink_to("nowhere")
    for workdir, what in {"file": "file", "file/a/b": "file", "link": "link", "link/a": "link"}.items():
        result = checkout.run("bash", f"launch/{script}.sh", CONFIG, f"--workdir={workdir}")
        assert_refused(result, f"--workdir='{workdir}' must be a folder, but '{what}' is none")
    assert checkout.calls() == []


def test_slurm_refuses_a_backslash(checkout):
    checkout.fake("sbatch")
    assert_refused(checkout.run("bash", "launch/slurm.sh", CONFIG, "--workdir=runs/a\\b"), "must not have a backslash")
    assert checkout.calls() == []


@pytest.mark.parametrize("word", ["a\n", "\n", "'\n'", "a\\", ""], ids=shown)
def test_words_after_the_flags_stay_what_they_are(checkout, word):
    for name in ("sbatch", "srun"):
        checkout.fake(name)
    checkout.fake_python()
    result = checkout.run("bash", "launch/slurm.sh", CONFIG, "--workdir=runs/x", "--", f"--config.name={word}", "last")
    assert result.returncode == 0, result.stderr
    assert checkout.run("bash", "-c", checkout.calls()[0][-1].removeprefix("--wrap=")).returncode == 0
    assert checkout.calls()[-1][-2:] == [f"--config.name={word}", "last"]
