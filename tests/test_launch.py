"""Makefile and launch scripts, with fake programs: nothing is installed, and no other machine is called."""

import re
import shlex
import shutil
import subprocess
import tomllib

import pytest
from fake_checkout import INSTALL, MAIN, ROOT, Checkout, assert_refused


def test_requirements_pin_every_dependency_exactly():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    canonical = lambda name: re.sub(r"[-_.]+", "-", name).lower()
    pins = {canonical(line.partition("==")[0]) for line in lines}
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in lines)
    assert len(pins) == len(lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    assert {canonical(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in wanted} <= pins


# ---- launch/detect_jax.sh


def gpu(driver, capability):
    return f"{driver}, {capability}"


@pytest.mark.parametrize(
    "rows, expected",
    [
        ([gpu("580.65.06", "9.0")], "cuda13 NVIDIA driver 580.65.06"),
        ([gpu("580.65.06", "7.5")], "cuda13"),
        ([gpu("595.10", "12.0"), gpu("595.10", "9.0")], "cuda13"),
        ([gpu("580.65.06", "7.0")], "cuda12"),
        ([gpu("580.65.06", "9.0"), gpu("580.65.06", "6.1")], "cuda12"),
        ([gpu("580.65.06", "6.1"), gpu("580.65.06", "9.0")], "cuda12"),
        ([gpu("580.65.06", "[N/A]")], "cuda12"),
        ([gpu("579.99", "9.0")], "cuda12"),
        ([gpu("525.60.13", "8.0")], "cuda12"),
        ([gpu("580.65.06", "5.0"), gpu("580.65.06", "9.0")], "cuda13 NVIDIA driver 580.65.06"),
        ([gpu("580.65.06", "9.0"), gpu("580.65.06", "5.0")], "cuda13 NVIDIA driver 580.65.06"),
        ([gpu("580.65.06", "5.0")], "cpu an NVIDIA GPU of compute capability 5.0 is too old"),
        ([gpu("470.82.01", "8.0")], "cpu NVIDIA driver 470.82.01 is too old"),
        (["No devices were found"], "cpu no NVIDIA GPU and no TPU was found"),
    ],
)
def test_detect_cuda_by_nvidia_smi(checkout, rows, expected):
    checkout.fake("nvidia-smi")
    environment = {"FAKE_NVIDIA-SMI_OUTPUT": "\n".join(rows)}
    assert checkout.run("bash", "launch/detect_jax.sh", str(checkout.root), **environment).stdout.startswith(expected)


@pytest.mark.parametrize("status", [None, "9"])
@pytest.mark.parametrize(
    "line, expected",
    [
        (
            "NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023",
            "cuda12 NVIDIA driver 535.104.05",
        ),
        ("NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (b@U22-3-4.5x)", "cuda12"),
        ("NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27 21:21:55 UTC 2021", "cpu NVIDIA driver 470.82.01"),
    ],
)
def test_detect_cuda_by_the_kernel_where_nvidia_smi_is_missing_or_fails(checkout, status, line, expected):
    if status:
        checkout.fake("nvidia-smi")
    for name, text in {
        "dev/nvidiactl": "",
        "proc/driver/nvidia/version": f"NVRM version: {line}\nGCC version: 12.3\n",
    }.items():
        (checkout.root / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout.root / name).write_text(text)
    environment = {"FAKE_NVIDIA-SMI_STATUS": status or "", "FAKE_NVIDIA-SMI_OUTPUT": "NVIDIA-SMI has failed"}
    assert checkout.run("bash", "launch/detect_jax.sh", str(checkout.root), **environment).stdout.startswith(expected)


@pytest.mark.parametrize(
    "files, environment, expected",
    [
        ({"sys/bus/pci/devices/a/vendor": "0x1ae0\n", "sys/bus/pci/devices/a/device": "0x0063\n"}, {}, "tpu"),
        # Google's network card is not a TPU, and neither is another vendor's device with the same id.
        ({"sys/bus/pci/devices/a/vendor": "0x1ae0\n", "sys/bus/pci/devices/a/device": "0x0042\n"}, {}, "cpu"),
        ({"sys/bus/pci/devices/a/vendor": "0x8086\n", "sys/bus/pci/devices/a/device": "0x0063\n"}, {}, "cpu"),
        ({"dev/accel0": ""}, {"TPU_WORKER_ID": "0"}, "tpu"),
        ({"dev/vfio/0": ""}, {"TPU_ACCELERATOR_TYPE": "v6e-8"}, "tpu"),
        ({"dev/vfio/0": "", "dev/accel0": ""}, {}, "cpu"),
        ({}, {"TPU_NAME": "far-away"}, "cpu"),
    ],
)
def test_detect_tpu(checkout, files, environment, expected):
    for name, text in files.items():
        (checkout.root / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout.root / name).write_text(text)
    result = checkout.run("bash", "launch/detect_jax.sh", str(checkout.root), **environment)
    assert result.stdout.split()[0] == expected


def test_detect_leaves_other_systems_at_the_cpu(checkout):
    (checkout.bin / "uname").unlink()
    checkout.fake("uname")
    checkout.fake("nvidia-smi")
    environment = {"FAKE_UNAME_OUTPUT": "Darwin", "FAKE_NVIDIA-SMI_OUTPUT": gpu("580.65.06", "9.0")}
    assert checkout.run("bash", "launch/detect_jax.sh", **environment).stdout == "cpu Darwin\n"


# ---- launch/setup.sh, Makefile, .ci/run


def test_make_demo_installs_once_and_runs_the_main_job(checkout):
    checkout.fake_python()
    first = checkout.run("make", "demo", "ARGS=--config.seed=1", "JAX=cpu")
    job = [*MAIN, "--config=configs/digits_osr.py", "--workdir=runs/demo"]
    assert first.returncode == 0, first.stderr
    assert checkout.calls() == [["python3.11", "-m", "venv", "--clear", ".venv"], INSTALL, [*job, "--config.seed=1"]]
    assert "Installing Python 3.11 packages and JAX" in first.stdout
    assert checkout.run("make", "demo").returncode == 0
    assert checkout.calls() == [job]


def test_changed_requirements_are_installed_in_place(checkout):
    checkout.fake_python()
    checkout.run("make", "setup", "JAX=cuda12")
    checkout.calls()
    requirements = checkout.root / "requirements.txt"
    requirements.write_text(requirements.read_text() + "another==1\n")
    checkout.run("make", "setup")
    assert [call[-2:] for call in checkout.calls()] == [["pip", "--version"], ["requirements.txt", installed("cuda12")]]


def installed(variant):
    return f"jax[{variant}]==" + re.search(r"^jax==(.*)$", (ROOT / "requirements.txt").read_text(), re.M)[1]


@pytest.mark.parametrize("variant", ["cuda12", "cuda13", "tpu"])
def test_another_jax_is_installed_into_a_new_environment(checkout, variant):
    checkout.fake_python()
    checkout.run("make", "setup", "JAX=cpu")
    checkout.calls()
    result = checkout.run("make", "setup", f"JAX={variant}")
    assert checkout.calls() == [["python3.11", "-m", "venv", "--clear", ".venv"], [*INSTALL, installed(variant)]]
    assert result.returncode == 0
    assert checkout.run("make", "setup").stdout == ""


def test_setup_detects_which_jax_to_install(checkout):
    checkout.fake_python()
    checkout.fake("nvidia-smi")
    result = checkout.run("make", "setup", **{"FAKE_NVIDIA-SMI_OUTPUT": gpu("580.65.06", "9.0")})
    assert [*INSTALL, installed("cuda13")] in checkout.calls()
    assert "for cuda13 (NVIDIA driver 580.65.06) into .venv" in result.stdout


def test_failed_installation_is_tried_again(checkout):
    checkout.fake_python()
    # Not 2, a mistake of the user: a job on Kubernetes would not be tried again.
    assert checkout.run("bash", "launch/setup.sh", FAKE_PIP_STATUS="1").returncode == 1
    result = checkout.run("make", "setup", FAKE_PIP_STATUS="1")
    assert result.returncode != 0
    assert "pip could not install the packages" in result.stderr
    checkout.calls()
    assert checkout.run("make", "setup").returncode == 0
    assert INSTALL in checkout.calls()


@pytest.mark.parametrize("stamp", ["", "cpu", "cpu 3.11"])
def test_a_stamp_that_was_cut_short_installs_again(checkout, stamp):
    checkout.fake_python()
    checkout.run("make", "setup", "JAX=cpu")
    checkout.calls()
    (checkout.root / ".venv/.gradmix_jax").write_text(stamp)
    result = checkout.run("make", "setup", "JAX=cpu")
    assert result.returncode == 0 and INSTALL in checkout.calls(), result.stderr
    assert len((checkout.root / ".venv/.gradmix_jax").read_text().split()) == 3


def test_an_environment_without_its_python_is_recreated(checkout):
    checkout.fake_python()
    checkout.run("make", "setup")
    (checkout.root / ".venv/bin/python").unlink()
    checkout.calls()
    checkout.run("make", "setup")
    assert checkout.calls() == [["python3.11", "-m", "venv", "--clear", ".venv"], INSTALL]


def test_setup_takes_the_first_suitable_python(checkout):
    checkout.fake("python3.11")  # a version manager's shim: on PATH, but it fails
    checkout.fake_python("python3.12", "3, 12", missing="ensurepip")
    checkout.fake_python("python3.13", "3, 10")
    checkout.fake_python("python3.14", "3, 14")
    checkout.fake_python("python3", "3, 12")
    result = checkout.run("bash", "launch/setup.sh", "--dry_run", **{"FAKE_PYTHON3.11_STATUS": "127"})
    assert result.stdout.splitlines() == ["python3.14 -m venv --clear .venv", shlex.join(INSTALL)]
    assert not (checkout.root / ".venv").exists()


def test_setup_takes_the_python_it_is_given(checkout):
    checkout.fake_python()
    checkout.fake_python("my python", "3, 12")
    checkout.run("make", "setup")
    checkout.calls()
    checkout.run("make", "setup", f"PYTHON={checkout.bin / 'my python'}")
    assert checkout.calls()[0] == ["my python", "-m", "venv", "--clear", ".venv"]


@pytest.mark.parametrize(
    "pythons, arguments, words",
    [
        ([], [], ["no Python 3.11 or newer was found"]),
        ([("python3", "3, 10", "")], [], ["no Python 3.11", "python3 is 3.10"]),
        ([("python3.11", "3, 11", ""), ("old", "3, 10", "")], ["--python=old"], ["old is 3.10"]),
        ([("python3", "3, 12", "ensurepip")], [], ["venv module is missing", "apt-get install python3.12-venv"]),
        ([("python3.11", "3, 11", "")], ["--jax=gpu"], ["--jax must be auto, cpu, cuda12, cuda13 or tpu, got 'gpu'"]),
        ([("python3.11", "3, 11", "")], ["--jaxx"], ["unknown argument '--jaxx'"]),
        ([("python3.11", "3, 11", "")], ["--venv=launch"], ["is a folder without a Python environment"]),
    ],
)
def test_setup_reports_mistakes_in_one_sentence(checkout, pythons, arguments, words):
    for name, version, missing in pythons:
        checkout.fake_python(name, version, missing)
    assert_refused(checkout.run("bash", "launch/setup.sh", *arguments), *words)
    assert (checkout.root / "launch/setup.sh").exists()


def test_ci_checks_style_then_runs_the_tests_and_ends_with_their_counts(checkout):
    checkout.fake_python()
    checkout.fake("shellcheck")
    result = checkout.run(".ci/run", CI="true", FAKE_PYTHON_OUTPUT="3 passed in 0.1s")
    assert result.returncode == 0, result.stderr
    checked, formatted, scripts, tests = checkout.calls()[-4:]
    assert checked == [".venv/bin/python", "-m", "ruff", "check", "."]
    assert formatted == [".venv/bin/python", "-m", "ruff", "format", "--check", "."]
    assert scripts[:2] == ["shellcheck", "-x"] and {"launch/setup.sh", "launch/tpu_pod.sh", ".ci/run"} <= {*scripts}
    assert tests == [".venv/bin/python", "-m", "pytest", "-n", "2", "--dist=loadfile"]
    assert result.stdout.splitlines()[-1] == "3 passed in 0.1s"


@pytest.mark.parametrize("tool, last", [("PYTHON", "ruff"), ("SHELLCHECK", "-x")])
def test_ci_fails_where_a_check_fails(checkout, tool, last):
    checkout.fake_python()
    checkout.fake("shellcheck")
    result = checkout.run(".ci/run", **{f"FAKE_{tool}_STATUS": "1"})
    assert result.returncode != 0 and last in checkout.calls()[-1]


# ---- launch/local.sh


def test_local_runs_the_job_and_keeps_its_output(checkout):
    checkout.fake_python()
    arguments = ["--config=configs/tiny.py:layer", "--workdir=runs/a b", "--config.seed=3", "--multihost"]
    for _ in range(2):
        result = checkout.run("bash", "launch/local.sh", *arguments, FAKE_PYTHON_OUTPUT="hello", FAKE_PYTHON_STATUS="3")
        assert result.returncode == 3
        assert checkout.calls()[-1] == [".venv/bin/python", "-u", "-m", "gradmix_jax.main", *arguments]
        assert result.stdout.splitlines()[-1] == "hello"
    assert (checkout.root / "runs/a b/log.txt").read_text() == "hello\nhello\n"


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_local_installs_what_reaches_a_bucket_and_logs_on_this_machine(checkout, scheme, package):
    checkout.fake_python()
    arguments = ["--config=configs/tiny.py", f"--workdir={scheme}://b/runs/a b"]
    assert checkout.run("bash", "launch/local.sh", *arguments, FAKE_PYTHON_OUTPUT="hello").returncode == 0
    *_, install, job = checkout.calls()
    assert install == [*INSTALL[:-2], "-c", "requirements.txt", package]
    assert job == [".venv/bin/python", "-u", "-m", "gradmix_jax.main", *arguments]
    assert (checkout.root / "runs/a b/log.txt").read_text().splitlines()[-1] == "hello"
    result = checkout.run("bash", "launch/local.sh", *arguments, FAKE_PIP_STATUS="1")
    assert result.returncode == 1 and f"pip could not install {package}" in result.stderr


def test_local_becomes_the_job_so_that_signals_reach_it(checkout):
    checkout.fake_python()
    process = checkout.start("bash", "launch/local.sh", *JOB, FAKE_PYTHON_OUTPUT="PID")
    output, _ = process.communicate(timeout=60)
    assert output.splitlines()[-1] == str(process.pid)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--workdir=runs/x"], ["--config is missing"]),
        (["--config=configs/tiny.py"], ["--workdir is missing"]),
        (["--config=configs/none.py", "--workdir=runs/x"], ["--config='configs/none.py' is not a file"]),
        (["--config=configs/tiny.py", "--workdir=ftp://b/x"], ["must be a folder, gs://BUCKET/FOLDER or s3://"]),
        (["--config=configs/tiny.py", "--workdir=gs://b"], ["='gs://b' must be a folder, gs://BUCKET/FOLDER"]),
    ],
)
def test_local_refuses(checkout, arguments, words):
    checkout.fake_python()
    assert_refused(checkout.run("bash", "launch/local.sh", *arguments), *words)
    assert checkout.calls() == []


# ---- launch/tpu_pod.sh

SLICE = ["--name=pod", "--zone=us-west4-a"]
JOB = ["--config=configs/tiny.py", "--workdir=runs/x"]
ON_ALL = "gcloud compute tpus tpu-vm ssh pod --zone=us-west4-a --worker=all"
INSTALL_ON_HOST = (
    "mkdir -p gradmix_jax && cd gradmix_jax && rm -rf gradmix_jax configs launch && tar -xzf ../gradmix_jax.tar.gz && "
    'echo  >commit && export PATH="$HOME/.local/bin:$PATH" && '
    "{ bash launch/setup.sh --jax=tpu --dry_run >/dev/null 2>&1 || "
    "{ python3 -m pip install --quiet --user uv && python3 -m uv python install 3.12; }; } && "
    "bash launch/setup.sh --jax=tpu"
)
COPY = [
    "mkdir -p runs",
    "tar -czf runs/pod.tar.gz --exclude=__pycache__ gradmix_jax configs launch pyproject.toml requirements.txt",
    "gcloud compute tpus tpu-vm scp runs/pod.tar.gz pod:gradmix_jax.tar.gz --zone=us-west4-a --worker=all",
]
RUN = (
    f"{ON_ALL} '--command=cd gradmix_jax && GRADMIX_JAX_COMMIT=$(cat commit) "
    "bash launch/local.sh --multihost --config=configs/tiny.py --workdir=runs/x'"
)
FETCH = [
    "mkdir -p runs",
    "gcloud compute tpus tpu-vm scp --recurse pod:gradmix_jax/runs/x runs/ --zone=us-west4-a --worker=0",
]
DELETE = "gcloud compute tpus tpu-vm delete pod --zone=us-west4-a --quiet"
CREATE = (
    "gcloud compute tpus tpu-vm create pod --zone=us-west4-a --accelerator-type=v5litepod-16 "
    "--version=v2-alpha-tpuv5-lite"
)
TPU_STEPS = {
    "create": (["create", *SLICE, "--type=v5litepod-16"], [CREATE]),
    "create with everything": (
        ["create", *SLICE, "--type=v6e-8", "--version=my-version", "--spot", "--project=my-project"],
        [
            "gcloud compute tpus tpu-vm create pod --zone=us-west4-a --project=my-project --accelerator-type=v6e-8 "
            "--spot --version=my-version"
        ],
    ),
    "queued": (
        ["create", *SLICE, "--type=v4-32", "--queued", "--spot"],
        [
            "gcloud compute tpus queued-resources create pod --node-id=pod --zone=us-west4-a --accelerator-type=v4-32 "
            "--spot --runtime-version=tpu-ubuntu2204-base",
            "gcloud compute tpus queued-resources describe pod --zone=us-west4-a '--format=value(state.state)'",
        ],
    ),
    "install": (["install", *SLICE], [*COPY, f"{ON_ALL} '--command={INSTALL_ON_HOST}'"]),
    "install and prepare": (
        ["install", *SLICE, "--prepare=mount a:/share runs; ls runs"],
        [*COPY, f"{ON_ALL} '--command={INSTALL_ON_HOST} && bash -c '\\''mount a:/share runs; ls runs'\\'''"],
    ),
    "run": (["run", *SLICE, *JOB], [RUN]),
    "run with arguments": (
        ["run", *SLICE, *JOB, "--", "--config.phases[0].epochs=2", "--config.dataset.name=folder:/my data"],
        [
            RUN[:-1] + " '\\''--config.phases[0].epochs=2'\\'' '\\''--config.dataset.name=folder:/my data'\\'''",
        ],
    ),
    "fetch": (["fetch", *SLICE, "--workdir=runs/x"], FETCH),
    "fetch from outside the checkout": (
        ["fetch", *SLICE, "--workdir=/mnt/runs/x"],
        [
            "mkdir -p runs",
            "gcloud compute tpus tpu-vm scp --recurse pod:/mnt/runs/x runs/ --zone=us-west4-a --worker=0",
        ],
    ),
    "fetch from a bucket": (["fetch", *SLICE, "--workdir=gs://b/x"], ["The workdir is in the bucket: gs://b/x"]),
    "run in a bucket": (
        ["run", *SLICE, JOB[0], "--workdir=gs://b/x"],
        [RUN.replace("--workdir=runs/x", "--workdir=gs://b/x")],
    ),
    "delete": (["delete", *SLICE], [DELETE]),
    "delete queued": (
        ["delete", *SLICE, "--queued"],
        ["gcloud compute tpus queued-resources delete pod --zone=us-west4-a --force --quiet"],
    ),
    "all": (
        ["all", *SLICE, *JOB, "--type=v5litepod-16"],
        [CREATE, *COPY, f"{ON_ALL} '--command={INSTALL_ON_HOST}'", RUN, *FETCH],
    ),
    "all and delete": (
        ["all", *SLICE, *JOB, "--type=v5litepod-16", "--delete_after"],
        [CREATE, *COPY, f"{ON_ALL} '--command={INSTALL_ON_HOST}'", RUN, *FETCH, DELETE],
    ),
}


@pytest.mark.parametrize("arguments, expected", TPU_STEPS.values(), ids=TPU_STEPS)
def test_tpu_pod_dry_run_prints_every_command_and_calls_none(checkout, arguments, expected):
    checkout.fake("gcloud")
    result = checkout.run("bash", "launch/tpu_pod.sh", *arguments[:1], "--dry_run", *arguments[1:])
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == expected
    assert checkout.calls() == []
    assert not (checkout.root / "runs").exists()


@pytest.mark.parametrize("arguments, expected", TPU_STEPS.values(), ids=TPU_STEPS)
def test_tpu_pod_calls_what_the_dry_run_prints(checkout, arguments, expected):
    checkout.fake("gcloud")
    result = checkout.run("bash", "launch/tpu_pod.sh", *arguments, FAKE_GCLOUD_OUTPUT="ACTIVE")
    assert result.returncode == 0, result.stderr
    assert checkout.calls() == [shlex.split(line) for line in expected if line.startswith("gcloud ")]
    assert [line for line in result.stdout.splitlines() if line != "ACTIVE"] == expected


def test_tpu_pod_sends_code_alone(checkout):
    checkout.fake("gcloud")
    for name in (".venv/secret", "runs/old/results.json", "data/secret", "gradmix_jax/__pycache__/main.pyc"):
        (checkout.root / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout.root / name).touch()
    assert checkout.run("bash", "launch/tpu_pod.sh", "install", *SLICE).returncode == 0
    listing = checkout.run("tar", "-tzf", "runs/pod.tar.gz").stdout.splitlines()
    assert {"gradmix_jax/main.py", "launch/setup.sh", "launch/commands.sh", "requirements.txt"} <= set(listing)
    assert not [name for name in listing if re.search(r"secret|results|pyc", name)]


def test_tpu_pod_host_command_unpacks_and_sets_up(checkout, tmp_path):
    """The text sent over ssh, executed as on a host; first without a suitable Python, which uv then installs."""
    checkout.fake("gcloud")
    checkout.fake("git")
    prepare = "--prepare=true; echo >'pre'pared"
    checkout.run("bash", "launch/tpu_pod.sh", "install", *SLICE, prepare, FAKE_GIT_OUTPUT="1234abc|")
    command = checkout.calls()[-1][-1].removeprefix("--command=")
    host = Checkout(tmp_path / "host")
    host.fake_python("python3", "3, 10")
    home = tmp_path / "home"
    (home / "gradmix_jax/gradmix_jax").mkdir(parents=True)
    (home / "gradmix_jax/gradmix_jax/deleted.py").touch()
    shutil.copy(checkout.root / "runs/pod.tar.gz", home / "gradmix_jax.tar.gz")
    environment = {"PATH": str(host.bin), "HOME": str(home), "CALLS": str(host.calls_file)}
    on_host = lambda: subprocess.run(["bash", "-c", command], cwd=home, env=environment, capture_output=True, text=True)
    # The fake uv installs nothing, so the command must fail and prepare nothing.
    assert on_host().returncode == 2 and not (home / "gradmix_jax/prepared").exists()
    assert host.calls() == [
        ["python3", "-m", "pip", "install", "--quiet", "--user", "uv"],
        ["python3", "-m", "uv", "python", "install", "3.12"],
    ]
    host.fake_python("python3.12", "3, 12")
    assert on_host().returncode == 0
    assert host.calls()[-1] == [*INSTALL, installed("tpu")]
    assert not (home / "gradmix_jax/gradmix_jax/deleted.py").exists()
    assert (home / "gradmix_jax/prepared").exists()
    assert (home / "gradmix_jax/commit").read_text() == "1234abc\n"


def test_tpu_pod_waits_for_a_queued_request(checkout):
    checkout.fake("gcloud")
    checkout.fake("sleep")
    arguments = ["create", *SLICE, "--type=v4-32", "--queued"]
    outputs = "made|WAITING_FOR_RESOURCES|PROVISIONING|ACTIVE"
    assert checkout.run("bash", "launch/tpu_pod.sh", *arguments, FAKE_GCLOUD_OUTPUT=outputs).returncode == 0
    names = [call[0] if call[0] == "sleep" else call[4] for call in checkout.calls()]
    assert names == ["create", "describe", "sleep", "describe", "sleep", "describe"]
    result = checkout.run("bash", "launch/tpu_pod.sh", *arguments, FAKE_GCLOUD_OUTPUT="made|FAILED")
    assert result.returncode == 2
    assert "is FAILED" in result.stderr


@pytest.mark.parametrize("delete", [True, False])
def test_tpu_pod_deletes_after_a_failure_only_if_asked(checkout, delete):
    checkout.fake("gcloud")
    arguments = ["all", *SLICE, *JOB, "--type=v5litepod-16", *(["--delete_after"] if delete else [])]
    result = checkout.run("bash", "launch/tpu_pod.sh", *arguments, FAKE_GCLOUD_STATUS="1")
    assert result.returncode == 1
    assert [call[4] for call in checkout.calls()] == (["create", "delete"] if delete else ["create"])


@pytest.mark.parametrize("statuses, status", [("0|0|0|7|0", 7), ("0|0|0|7|1|0", 7), ("0|0|0|0|1|0", 1)])
def test_tpu_pod_fetches_what_a_failed_job_saved(checkout, statuses, status):
    checkout.fake("gcloud")
    arguments = ["all", *SLICE, *JOB, "--type=v5litepod-16", "--delete_after"]
    result = checkout.run("bash", "launch/tpu_pod.sh", *arguments, FAKE_GCLOUD_STATUS=statuses)
    assert result.returncode == status
    assert [call[4] for call in checkout.calls()] == ["create", "scp", "ssh", "ssh", "scp", "delete"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["the first argument must be create, install", "got ''"]),
        (["destroy"], ["got 'destroy'"]),
        (["delete", "--zone=us-west4-a"], ["--name=''"]),
        (["delete", "--name=Pod", "--zone=us-west4-a"], ["--name='Pod'", "lowercase"]),
        (["delete", "--name=a b", "--zone=us-west4-a"], ["--name='a b'"]),
        (["delete", "--name=pod\nx", "--zone=us-west4-a"], ["x' must be"]),
        (["delete", "--name=pod"], ["--zone=''"]),
        (["delete", "--name=pod", "--zone=us-west4"], ["--zone='us-west4'"]),
        (["delete", *SLICE, "--project=P"], ["--project='P'"]),
        (["create", *SLICE], ["--type=''"]),
        (["create", *SLICE, "--type=v5e"], ["--type='v5e'"]),
        (["create", *SLICE, "--type=v99-8"], ["--version is missing", "'v99-8'"]),
        (["create", *SLICE, "--type=v4-8", "--version=$(x)"], ["--version='$(x)'"]),
        (["run", *SLICE, "--workdir=runs/x"], ["--config is missing"]),
        (["run", *SLICE, "--config=configs/none.py", "--workdir=runs/x"], ["is not a file"]),
        (["run", *SLICE, "--config=configs/tiny.py"], ["--workdir is missing"]),
        (["run", *SLICE, *JOB, "--config.seed=1"], ["unknown argument '--config.seed=1'", "after --"]),
        (["run", *SLICE, *JOB, "--delete_after"], ["--delete_after is for the step all"]),
        (["run", *SLICE, *JOB, "--prepare=true"], ["--prepare is for the steps"]),
        (["fetch", *SLICE], ["--workdir is missing"]),
        (["fetch", *SLICE, "--workdir=runs/x", "--", "--config.seed=1"], ["arguments after --"]),
        (["delete", *SLICE], ["gcloud was not found"]),
    ],
)
def test_tpu_pod_refuses(checkout, arguments, words):
    if "gcloud was not found" not in words:
        checkout.fake("gcloud")
    assert_refused(checkout.run("bash", "launch/tpu_pod.sh", *arguments), *words)
    assert checkout.calls() == []


# ---- launch/slurm.sh

SLURM_JOBS = {
    "one node": (
        JOB,
        "sbatch --job-name=gradmix_jax --nodes=1 --ntasks-per-node=1 --cpus-per-task=8 --time=24:00:00 "
        "--gpus-per-node=1 --output=runs/x/slurm-%j.log --open-mode=append --requeue --signal=TERM@120 "
        "'--wrap=bash launch/setup.sh && srun --kill-on-bad-exit=1 --cpus-per-task=8 .venv/bin/python -u "
        "-m gradmix_jax.main --config=configs/tiny.py --workdir=runs/x'",
    ),
    "nodes": (
        [*JOB, "--nodes=2", "--gpus_per_node=4", "--cpus_per_node=32", "--time=3-12:00:00", "--partition=gpu"]
        + ["--account=me", "--", "--config.dataset.name=folder:/my data"],
        "sbatch --job-name=gradmix_jax --nodes=2 --ntasks-per-node=1 --cpus-per-task=32 --time=3-12:00:00 "
        "--gpus-per-node=4 --partition=gpu --account=me --output=runs/x/slurm-%j.log --open-mode=append --requeue "
        "--signal=TERM@120 '--wrap=bash launch/setup.sh && env JAX_LOCAL_DEVICE_IDS=0,1,2,3 "
        "srun --kill-on-bad-exit=1 --cpus-per-task=32 .venv/bin/python -u -m gradmix_jax.main --multihost "
        "--config=configs/tiny.py --workdir=runs/x '\\''--config.dataset.name=folder:/my data'\\'''",
    ),
    "no GPU": (
        [*JOB, "--nodes=2", "--gpus_per_node=0"],
        "sbatch --job-name=gradmix_jax --nodes=2 --ntasks-per-node=1 --cpus-per-task=8 --time=24:00:00 "
        "--output=runs/x/slurm-%j.log --open-mode=append --requeue --signal=TERM@120 "
        "'--wrap=bash launch/setup.sh && srun --kill-on-bad-exit=1 --cpus-per-task=8 .venv/bin/python -u "
        "-m gradmix_jax.main --multihost --config=configs/tiny.py --workdir=runs/x'",
    ),
}


@pytest.mark.parametrize("arguments, expected", SLURM_JOBS.values(), ids=SLURM_JOBS)
def test_slurm_prints_and_calls_the_same(checkout, arguments, expected):
    checkout.fake("sbatch")
    dry = checkout.run("bash", "launch/slurm.sh", "--dry_run", *arguments)
    assert dry.stdout.splitlines() == ["mkdir -p runs/x", expected]
    assert checkout.calls() == []
    assert not (checkout.root / "runs").exists()
    real = checkout.run("bash", "launch/slurm.sh", *arguments, FAKE_SBATCH_OUTPUT="Submitted batch job 7")
    assert real.stdout.splitlines() == [*dry.stdout.splitlines(), "Submitted batch job 7"]
    assert checkout.calls() == [shlex.split(expected)]
    assert (checkout.root / "runs/x").is_dir()


def test_slurm_job_in_a_bucket_installs_what_reaches_it(checkout):
    dry = checkout.run("bash", "launch/slurm.sh", "--dry_run", JOB[0], "--workdir=s3://b/a b/")
    made, submitted = map(shlex.split, dry.stdout.splitlines())
    assert made == ["mkdir", "-p", "runs/a b"] and "--output=runs/a b/slurm-%j.log" in submitted
    assert submitted[-1].startswith("--wrap=bash launch/setup.sh '--workdir=s3://b/a b/' && srun ")
    assert submitted[-1].endswith("'--workdir=s3://b/a b/'")


def test_slurm_job_starts_the_main_job(checkout):
    """What Slurm would execute on the first node, with an srun that only records."""
    for name in ("sbatch", "srun"):
        checkout.fake(name)
    checkout.fake_python()
    checkout.run("bash", "launch/slurm.sh", *SLURM_JOBS["nodes"][0])
    script = checkout.calls()[0][-1].removeprefix("--wrap=")
    assert checkout.run("bash", "-c", script).returncode == 0
    *_, install, started = checkout.calls()
    assert install == INSTALL
    assert started[3:7] == [".venv/bin/python", "-u", "-m", "gradmix_jax.main"]
    assert started[-1] == "--config.dataset.name=folder:/my data"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--workdir=runs/x"], ["--config is missing"]),
        ([*JOB, "--nodes=0"], ["--nodes='0'", "1 to 9999"]),
        ([*JOB, "--gpus_per_node=many"], ["--gpus_per_node='many'"]),
        ([*JOB, "--cpus_per_node="], ["--cpus_per_node=''"]),
        ([*JOB, "--time=a day"], ["--time='a day'"]),
        ([*JOB, "--gpus=1"], ["unknown argument '--gpus=1'"]),
        (JOB, ["sbatch was not found"]),
    ],
)
def test_slurm_refuses(checkout, arguments, words):
    if "sbatch was not found" not in words:
        checkout.fake("sbatch")
    assert_refused(checkout.run("bash", "launch/slurm.sh", *arguments), *words)
    assert checkout.calls() == []


SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[03-04]", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        (SLURM | {"SLURM_PROCID": "1"}, {}, ("node03:61447", 2, 1)),
        (SLURM | {"SLURM_PROCID": "0", "JAX_COORDINATOR_PORT": "5"}, {}, ("node03:5", 2, 0)),
        ({}, {"coordinator": "a:8476", "num_processes": 3, "process_id": 2}, ("a:8476", 3, 2)),
        ({}, {}, "--multihost finds no other processes"),
        ({}, {"num_processes": 3}, "--num_processes needs --coordinator"),
        ({}, {"coordinator": "a"}, "--coordinator must be HOST:PORT of process 0, got 'a'"),
        ({}, {"coordinator": "a:1", "num_processes": 0}, "--num_processes must be a positive integer, got 0"),
        (
            {},
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "--process_id must be an integer from 0 to 1, got 2",
        ),
    ],
)
def test_processes_are_found_by_the_environment_or_told_by_flags(environment, given, expected, monkeypatch):
    from jax._src import distributed

    from gradmix_jax.pod import joining

    joined = []

    class Client:
        def connect(self):
            pass

    def client(address, process, **_):
        joined.append((address, process))
        return Client()

    for name in ("JAX_COORDINATOR_ADDRESS", "KUBERNETES_SERVICE_HOST", *SLURM, "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    state = distributed.State()
    monkeypatch.setattr(distributed, "global_state", state)
    monkeypatch.setattr(joining.jax.distributed, "initialize", state.initialize)
    monkeypatch.setattr(joining.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(distributed._jax, "get_distributed_runtime_client", client)
    monkeypatch.setattr(joining.jax, "process_count", lambda: 1)  # of a backend that would need a real client
    monkeypatch.setattr(joining, "Service", lambda *_, **__: None)
    monkeypatch.setattr(state, "initialize_preemption_sync_manager", lambda: None)
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=re.escape(expected)):
            joining.initialize(**given)
    else:
        joining.initialize(**given)
        assert (*joined, state.num_processes) == ((expected[0], expected[2]), expected[1])
