"""The manifests for Kubernetes and the Dockerfile, checked as text: there is no cluster here and no container engine.

Every field of a manifest must be one of SCHEMAS: a cluster ignores a misspelled field, or refuses the manifest. The
scripts of the containers run against fake programs.
"""

import importlib.util
import json
import re
import shutil
import subprocess
import tomllib

import jsonschema
import pytest
import yaml
from fake_checkout import ROOT

LAUNCH = ROOT / "launch"
TEXT, COUNT, YES = {"type": "string"}, {"type": "integer", "minimum": 1}, {"const": True}
# Of a resource: what follows DNS, at most 63 letters.
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"}
# cpu: "8" or "500m"; memory: 32Gi. A number of GPUs is an integer.
QUANTITY = {"type": ["string", "integer"], "pattern": "^[1-9][0-9]*(m|Ki|Mi|Gi|Ti)?$", "minimum": 1}


def fields(needed, **optional):
    """An object that has the fields `needed`, may have the optional ones, and has no others."""
    properties = {**needed, **optional}
    return {"type": "object", "properties": properties, "required": [*needed], "additionalProperties": False}


def several(of, **options):
    return {"type": "array", "items": of, "minItems": 1, **options}


QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER = fields(
    {"name": NAME, "image": {"type": "string", "pattern": "^[^:]+:(?!latest$)[^:]+$"}},
    command=several(TEXT),
    args=several(TEXT),
    # A number in place of a string is refused by a cluster: value: 2.
    env=several(fields({"name": {"type": "string", "pattern": "^[A-Z_]+$"}, "value": TEXT})),
    ports=several(fields({"containerPort": COUNT})),
    resources=fields({"requests": QUANTITIES, "limits": QUANTITIES}),
    volumeMounts=several(fields({"name": NAME, "mountPath": {"type": "string", "pattern": "^/[a-z]"}})),
)
POD = fields(
    {
        "restartPolicy": {"const": "Never"},  # podFailurePolicy asks for it
        "terminationGracePeriodSeconds": {"type": "integer", "minimum": 60},
        "containers": several(CONTAINER),
        "volumes": several(fields({"name": NAME, "persistentVolumeClaim": fields({"claimName": NAME})})),
    },
    subdomain=NAME,
)
EXIT_CODES = fields({"containerName": NAME, "operator": {"enum": ["In", "NotIn"]}, "values": several(COUNT)})
CONDITIONS = several(fields({"type": TEXT, "status": {"enum": ["True", "False", "Unknown"]}}))
RULE = fields({"action": {"enum": ["FailJob", "Ignore", "Count"]}}, onExitCodes=EXIT_CODES, onPodConditions=CONDITIONS)
JOB = fields(
    {"backoffLimit": COUNT, "template": fields({"spec": POD}), "podFailurePolicy": fields({"rules": several(RULE)})},
    completionMode={"enum": ["Indexed", "NonIndexed"]},
    completions=COUNT,
    parallelism=COUNT,
)
SERVICE = fields(
    {"selector": {"type": "object"}, "ports": several(fields({"name": NAME, "port": COUNT}))},
    clusterIP={"const": "None"},
    publishNotReadyAddresses=YES,
)
SCHEMAS = {("batch/v1", "Job"): JOB, ("v1", "Service"): SERVICE}
MANIFESTS = sorted(path.name for path in LAUNCH.glob("*.yaml"))


def documents(name):
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


def job_of(name):
    (job,) = (each for each in documents(name) if each["kind"] == "Job")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return job, pod, container, {entry["name"]: entry["value"] for entry in container["env"]}


def problem(document):
    """Why a cluster would reject a document; "" if it would not."""
    schema = SCHEMAS.get((document.get("apiVersion"), document.get("kind")))
    if schema is None:
        return "no such kind"
    whole = fields({"apiVersion": TEXT, "kind": TEXT, "metadata": fields({"name": NAME}), "spec": schema})
    errors = jsonschema.Draft202012Validator(whole).iter_errors(document)
    return "; ".join(f"{error.json_path}: {error.message}" for error in errors)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_has_fields_that_there_are(name):
    assert [problem(each) for each in documents(name)] == [""] * len(documents(name))
    job, pod, container, _ = job_of(name)
    # Names that stand for something must be those of what they stand for.
    mounts = [mount["name"] for mount in container["volumeMounts"]]
    assert mounts == [volume["name"] for volume in pod["volumes"]]
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert [rule["onExitCodes"] for rule in rules if "onExitCodes" in rule] == [
        {"containerName": container["name"], "operator": "In", "values": [2]}  # a mistake of the user, see docs/runs.md
    ]
    assert all(len(rule.keys() & {"onExitCodes", "onPodConditions"}) == 1 for rule in rules)
    # Of the comment at the top: the commands to type.
    comment = (LAUNCH / name).read_text().partition("apiVersion")[0]
    assert f"kubectl apply -f launch/{name}\n" in comment
    assert f"kubectl logs --follow job/{job['metadata']['name']}\n" in comment


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kind",), "Jobs"),
        (("metadata", "name"), "Gradmix_JAX"),
        (("spec", "backofLimit"), 1),
        (("spec", "backoffLimit"), "20"),
        (("spec", "template", "spec", "restartPolicy"), "Always"),
        (("spec", "template", "spec", "terminationGracePeriodSeconds"), 5),
        (("spec", "template", "spec", "containers", 0, "image"), "python:latest"),
        (("spec", "template", "spec", "containers", 0, "image"), "python"),
        (("spec", "template", "spec", "containers", 0, "env", 0, "value"), 2),
        (("spec", "template", "spec", "containers", 0, "resources", "requests", "memory"), "32GB"),
    ],
)
def test_the_schema_finds_mistakes(path, value):
    (document,) = documents("kubernetes.yaml")
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert problem(document) != ""


def started(checkout, name, **more):
    """The calls of a container's script, with its git clone replaced by the files that it would bring."""
    _, _, container, environment = job_of(name)
    environment |= {"REPOSITORY": "https://example.com/a"} | more
    checkout.fake("git")
    checkout.fake_python()
    shutil.copy(checkout.root / "configs/tiny.py", checkout.root / environment["CONFIG"])
    script = container["args"][0].replace("/gradmix_jax/", f"{checkout.root}/")
    result = checkout.run(*container["command"], script, **environment)
    assert result.returncode == 0, result.stderr
    first, *_, last = checkout.calls()
    assert first[:4] == ["git", "clone", "--depth=1", "--"] and first[4] == environment["REPOSITORY"]
    assert last[1:5] == ["-u", "-m", "gradmix_jax.main", f"--config={environment['CONFIG']}"]
    return last[5:]


@pytest.mark.parametrize("name", MANIFESTS)
def test_without_a_repository_nothing_is_cloned(checkout, name):
    _, _, container, environment = job_of(name)
    checkout.fake("git")
    result = checkout.run(*container["command"], container["args"][0], **environment)
    assert result.returncode and "REPOSITORY: is empty: name the repository in this file" in result.stderr
    assert checkout.calls() == []


def test_the_job_starts_the_main_job(checkout):
    _, _, container, environment = job_of("kubernetes.yaml")
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert environment["WORKDIR"].startswith(container["volumeMounts"][0]["mountPath"] + "/")
    workdir = str(checkout.root / "runs/k8s")
    assert started(checkout, "kubernetes.yaml", WORKDIR=workdir) == [f"--workdir={workdir}"]


def test_a_hostile_workdir_stays_one_word(checkout):
    workdir = f'{checkout.root}/it\'s "a" $(touch pwned) `touch pwned`;&|\\'
    assert started(checkout, "kubernetes.yaml", WORKDIR=workdir) == [f"--workdir={workdir}"]
    assert not list(checkout.root.rglob("pwned"))


def test_hosts_join_each_other(checkout):
    service, _ = documents("kubernetes_hosts.yaml")
    job, pod, container, environment = job_of("kubernetes_hosts.yaml")
    name, spec = job["metadata"]["name"], job["spec"]
    # The names that pods of an Indexed job have, and the service that resolves them.
    assert (spec["completionMode"], pod["subdomain"]) == ("Indexed", service["metadata"]["name"])
    assert (service["spec"]["clusterIP"], service["spec"]["selector"]) == ("None", {"job-name": name})
    (port,) = (each["port"] for each in service["spec"]["ports"])
    assert environment["COORDINATOR"] == f"{name}-0.{service['metadata']['name']}:{port}"
    assert port == container["ports"][0]["containerPort"]
    assert spec["completions"] == spec["parallelism"] == int(environment["HOSTS"])
    workdir = str(checkout.root / "runs/k8s")
    assert started(checkout, "kubernetes_hosts.yaml", WORKDIR=workdir, JOB_COMPLETION_INDEX="1") == [
        f"--workdir={workdir}",
        f"--coordinator={environment['COORDINATOR']}",
        "--num_processes=2",
        "--process_id=1",
    ]


# ---- launch/Dockerfile


def instructions():
    """[instruction, its words] of each."""
    text = re.sub(r"^#.*\n", "", (LAUNCH / "Dockerfile").read_text(), flags=re.MULTILINE)
    return [line.split(None, 1) for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]


def only(name):
    (words,) = (words for instruction, words in instructions() if instruction == name)
    return words


def test_the_image_has_a_python_that_is_supported():
    image, _, tag = only("FROM").partition(":")
    version = re.match(r"(\d+)\.(\d+)(-|$)", tag)
    assert image == "python" and version, "a version, not the newest there is"
    lowest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    newest = re.search(r"installs on Python 3\.11 to (\d+)\.(\d+)", (ROOT / "requirements.txt").read_text())
    number = tuple(map(int, version.groups()[:2]))
    assert tuple(map(int, lowest.removeprefix(">=").split("."))) <= number <= tuple(map(int, newest.groups()))


def test_the_image_runs_a_module_that_there_is_as_an_ordinary_user():
    python, flag, module = json.loads(only("ENTRYPOINT"))
    assert (python, flag) == ("python", "-m") and importlib.util.find_spec(module)
    user, order = only("USER"), [instruction for instruction, _ in instructions()]
    (made,) = (words for instruction, words in instructions() if instruction == "RUN" and "useradd" in words)
    assert user not in ("root", "0") and re.search(rf"useradd .*--uid [1-9]\d* {user}\b", made)
    # All that needs rights comes before, and the workdirs are that user's.
    assert order.index("USER") > max(place for place, name in enumerate(order) if name in ("RUN", "COPY"))
    assert f"chown {user} {only('VOLUME')}" in made


def test_the_image_installs_the_requirements_and_has_what_runs(tmp_path):
    sources = [name for word, words in instructions() if word == "COPY" for name in words.split()[:-1]]
    assert {"requirements.txt", "gradmix_jax", "configs", "pyproject.toml"} <= set(sources)
    assert all((ROOT / name).exists() for name in sources)
    let_in = (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in let_in if line[:1] == "!"} == set(sources)
    # The installation, with a pip that records: the same versions as everywhere.
    (install,) = (words for word, words in instructions() if word == "RUN" and "pip install" in words)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    jax = re.search(r"^jax==(.*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    for choice, extra in {"cpu": "", "cuda13": f" jax[cuda13]=={jax}"}.items():
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "JAX": choice}
        result = subprocess.run(["sh", "-c", install], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.stdout == f"install --no-cache-dir --disable-pip-version-check -r requirements.txt{extra}\n"
