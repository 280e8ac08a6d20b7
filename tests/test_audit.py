"""The audit of pinned versions and the software bill of materials: the package, its documentation and its extras."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib

import pytest
from fake_checkout import ROOT, assert_refused

FILES = ["requirements.txt", "docs/requirements.txt", "launch/extras.txt"]
VULNERABLE = {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "fix_versions": ["2"]}, {"id": "CVE-2"}]}


@pytest.mark.parametrize(
    ("packages", "problem", "lines", "status"),
    [
        ([], "no network", ["audit skipped: no network"], 0),
        (
            [{"name": "a", "skip_reason": "unknown"}],
            "",
            ["audit skipped: none of the 1 packages could be looked up; is there a network?"],
            0,
        ),
        (
            [{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "unknown"}],
            "",
            ["not audited, 1 of 2 packages: b", "0 of 1 audited packages have a known vulnerability"],
            0,
        ),
        (
            [VULNERABLE, {"name": "b", "version": "1", "vulns": []}],
            "",
            [
                "a 1: CVE-1, fixed in 2",
                "a 1: CVE-2, fixed in no version",
                "1 of 2 audited packages have a known vulnerability",
            ],
            1,
        ),
    ],
)
def test_what_an_audit_says(packages, problem, lines, status):
    audit = runpy.run_path(str(ROOT / "launch" / "audit.py"))
    assert audit["report"](packages, problem) == (lines, status)


def pins(file):
    """{name: version} of a file of pinned requirements."""
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_extras_are_pinned_whole_and_fit_the_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"]
    named = {normal(re.match(r"[A-Za-z0-9._-]+", each)[0]) for name in wanted for each in wanted[name]}
    main, docs, extras = (pins(file) for file in FILES)
    assert named <= {normal(name) for name in (*main, *docs, *extras)}
    assert not main.keys() & extras.keys() and all(re.fullmatch(r"[0-9][0-9a-z.]*", each) for each in extras.values())
    assert int(main["python-dateutil"].split(".")[0]) < 3, "botocore, of s3fs, needs it"
    # The plugins are of JAX's own version.
    assert {extras[f"jax-{name}-plugin"] for name in ("cuda12", "cuda13")} == {main["jax"]}


def test_an_audit_reads_all_three_files(checkout):
    for name in FILES:
        (checkout.root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, checkout.root / name)
    checkout.fake("python")
    (checkout.root / ".venv/bin").mkdir(parents=True)
    shutil.move(checkout.bin / "python", checkout.root / ".venv/bin/python")
    version = re.search(r"^version=(\S+)", (ROOT / "launch/audit.sh").read_text(), re.MULTILINE)[1]
    for words, files in (([], FILES), ([f"--requirements={FILES[1]}"], FILES[1:2])):
        result = checkout.run("bash", "launch/audit.sh", *words, FAKE_PYTHON_OUTPUT=f"pip-audit {version}")
        assert result.returncode == 0, result.stderr
        assert checkout.calls()[-1] == ["python", "launch/audit.py", *files]
    assert_refused(checkout.run("bash", "launch/audit.sh", "--requirements=none.txt"), "there is no file 'none.txt'")


def test_the_worst_file_decides_the_status_of_an_audit(tmp_path):
    """With a pip-audit that reports a vulnerable package in one of the files."""
    (tmp_path / "pip_audit.py").write_text(
        "import json, sys\n"
        "vulns = [{'id': 'CVE-1', 'fix_versions': ['2']}] * ('bad.txt' in sys.argv)\n"
        "print(json.dumps({'dependencies': [{'name': 'a', 'version': '1', 'vulns': vulns}]}))\n"
    )
    run = lambda *files: subprocess.run(
        [sys.executable, ROOT / "launch/audit.py", *files],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert (run("good.txt").returncode, run("bad.txt", "good.txt").returncode) == (0, 1)
    assert run("bad.txt", "good.txt").stdout.splitlines() == [
        "bad.txt: a 1: CVE-1, fixed in 2",
        "bad.txt: 1 of 1 audited packages have a known vulnerability",
        "good.txt: 0 of 1 audited packages have a known vulnerability",
    ]


def test_a_bill_of_materials_lists_what_is_installed(tmp_path):
    out = tmp_path / "sbom.json"
    result = subprocess.run(
        [sys.executable, "launch/sbom.py", f"--out={out}"], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text())
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.5")
    assert found["metadata"]["component"]["name"] == "gradmix_jax"
    for each in found["components"]:
        assert each["type"] == "library" and each["purl"] == f"pkg:pypi/{each['name'].lower()}@{each['version']}"
    assert len({each["bom-ref"] for each in found["components"]}) == len(found["components"])
    # What is not installed comes from the pinned files, as optional.
    more = {each["name"]: each for each in found["components"] if each.get("scope") == "optional"}
    installed = {each["name"] for each in found["components"]} - more.keys()
    for file in FILES[1:]:
        for name, version in pins(file).items():
            assert normal(name) in installed or (more[normal(name)]["version"] == version)
            assert normal(name) in installed or {"name": "pinned_in", "value": file} in more[normal(name)]["properties"]
    assert "jax" in installed and "onnx" in installed | more.keys()
