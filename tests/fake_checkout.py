"""A copy of the launch files with fake programs beside it, on a PATH of their own.

The PATH holds only harmless tools and the fakes, so that a real gcloud or sbatch of the machine is out of reach.
A fake writes down its arguments, one JSON list a line.
"""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = shlex.split("bash sh env cat sed tr cksum dirname mkdir rm ls tee tar gzip uname seq make")
# Stands in for any program: records its call, then answers with $FAKE_<NAME>_OUTPUT and $FAKE_<NAME>_STATUS:
# one per call, separated by |; the last one serves all later calls.
RECORDER = """#!{python} -S
import json, os, sys
name = os.path.basename(sys.argv[0])
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
outputs = os.environ.get(f"FAKE_{{name.upper()}}_OUTPUT", "").split("|")
number = sum(json.loads(line)[0] == name for line in open(os.environ["CALLS"]))
print(outputs[min(number, len(outputs)) - 1])
statuses = os.environ.get(f"FAKE_{{name.upper()}}_STATUS", "0").split("|")
sys.exit(int(statuses[min(number, len(statuses)) - 1]))
"""
# A Python of version $1 ($2: without which module) that makes fake environments and records what it is asked to run.
PYTHON = """#!{python} -S
import json, os, shutil, sys
arguments = sys.argv[1:]
if arguments[0] == "-c":
    code = arguments[1].replace("sys.version_info", "({version})")
    if "{missing}" and "{missing}" in code:
        sys.exit(1)
    exec(code.replace("import ensurepip, venv", ""))
    sys.exit()
name = os.path.relpath(sys.argv[0]) if "/.venv/" in os.path.abspath(sys.argv[0]) else os.path.basename(sys.argv[0])
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([name, *arguments]) + "\\n")
if arguments[:2] == ["-m", "venv"]:
    os.makedirs(arguments[-1] + "/bin", exist_ok=True)
    open(arguments[-1] + "/pyvenv.cfg", "w").close()
    shutil.copy(sys.argv[0], arguments[-1] + "/bin/python")
print(os.environ.get("FAKE_PYTHON_OUTPUT", "").replace("PID", str(os.getpid())))
if not {{"venv", "pip"}} & set(arguments[1:2]):
    sys.exit(int(os.environ.get("FAKE_PYTHON_STATUS", "0")))
if "install" in arguments:
    sys.exit(int(os.environ.get("FAKE_PIP_STATUS", "0")))
"""
INSTALL = shlex.split(".venv/bin/python -m pip install -qq --disable-pip-version-check --no-input -r requirements.txt")
MAIN = [".venv/bin/python", "-m", "gradmix_jax.main"]


class Checkout:
    """A copy of the launch files in a folder of its own, and the fakes beside it."""

    def __init__(self, folder: Path):
        self.root, self.bin, self.calls_file = folder / "checkout", folder / "bin", folder / "calls"
        for name in ("launch", ".ci"):
            shutil.copytree(ROOT / name, self.root / name)
        for name in ("Makefile", "requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        for name in ("configs/tiny.py", "configs/digits_osr.py", "gradmix_jax/main.py"):
            (self.root / name).parent.mkdir(exist_ok=True)
            (self.root / name).touch()
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))

    def fake(self, name: str) -> None:
        self._write(name, RECORDER.format(python=sys.executable))

    def fake_python(self, name: str = "python3.11", version: str = "3, 11", missing: str = "") -> None:
        self._write(name, PYTHON.format(python=sys.executable, version=version, missing=missing))

    def _write(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def start(self, *command: str, **environment: str) -> subprocess.Popen:
        environment = {"PATH": str(self.bin), "CALLS": str(self.calls_file), "HOME": str(self.root)} | environment
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(
            command, cwd=self.root, env=environment, stdout=pipe, stderr=pipe, stdin=nothing, text=True
        )

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        with self.start(*command, **environment) as process:
            output, errors = process.communicate(timeout=60)
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def calls(self) -> list[list[str]]:
        """Calls of the fakes since the last call of this function."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]


def assert_refused(result: subprocess.CompletedProcess, *words: str) -> None:
    """Exit status 2, nothing on stdout, and one line that has all the words."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert re.fullmatch(r"[a-z_]+\.sh: [^\n]*\n", result.stderr), result.stderr
    assert all(word in result.stderr for word in words), result.stderr
