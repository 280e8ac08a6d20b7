"""Write a software bill of materials: CycloneDX 1.5 JSON, without a network.

python launch/sbom.py --out=sbom.json

It lists the packages of this Python environment, from installed metadata, and those that the documentation and the
extras would add, from their pinned versions; the latter have the scope "optional" and name their file.
"""

import argparse
import json
import pathlib
import re
from importlib import metadata

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Pins of packages that only `make docs` or an extra installs.
OPTIONAL = ("docs/requirements.txt", "launch/extras.txt")

# License classifier -> SPDX identifier; for other licenses, the package's own text is used.
LICENSES = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: BSD License": "BSD-3-Clause",
    "License :: OSI Approved :: ISC License (ISCL)": "ISC",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "License :: OSI Approved :: Python Software Foundation License": "PSF-2.0",
}


def normal(name: str) -> str:
    """The normalized spelling of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def identity(name: str, version: str) -> dict:
    """The fields that every component has."""
    purl = f"pkg:pypi/{name}@{version}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def optional(installed: dict[str, metadata.Distribution]) -> list[dict]:
    """The pinned packages of OPTIONAL that are not installed."""
    found: dict[str, dict] = {}
    for file in OPTIONAL:
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            name, pinned, version = line.partition("==")
            if pinned and not line.startswith("#") and normal(name) not in installed:
                pin = {"name": "pinned_in", "value": file}
                found.setdefault(normal(name), identity(normal(name), version) | {"scope": "optional"})
                found[normal(name)].setdefault("properties", []).append(pin)
    return [found[name] for name in sorted(found)]


def component(found: metadata.Distribution) -> dict:
    """One installed package: name, version, purl, summary and license."""
    entry = identity(normal(found.metadata["Name"]), found.version)
    if found.metadata.get("Summary"):
        entry["description"] = found.metadata["Summary"]
    licenses = license_of(found)
    return entry | ({"licenses": licenses} if licenses else {})


def license_of(found: metadata.Distribution) -> list[dict]:
    """The license in CycloneDX's form: an expression, identifiers, or a name in the package's own words."""
    if found.metadata.get("License-Expression"):
        return [{"expression": found.metadata["License-Expression"]}]
    ids = [LICENSES[each] for each in found.metadata.get_all("Classifier") or () if each in LICENSES]
    if ids:
        return [{"license": {"id": each}} for each in dict.fromkeys(ids)]
    words = (found.metadata.get("License") or "").strip().splitlines()
    return [{"license": {"name": words[0][:80]}}] if words else []


def dependencies(packages: dict[str, metadata.Distribution]) -> list[dict]:
    """The dependencies of each package on the others, without extras."""
    refs = {name: f"pkg:pypi/{name}@{each.version}" for name, each in packages.items()}
    found = []
    for name, each in sorted(packages.items()):
        needed = [text for text in each.requires or () if "extra ==" not in text]
        names = {normal(re.match(r"[A-Za-z0-9._-]+", text)[0]) for text in needed}
        found.append({"ref": refs[name], "dependsOn": sorted(refs[other] for other in names & refs.keys())})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="sbom.json", help="file to write")
    packages = {}
    for each in metadata.distributions():
        if each.metadata["Name"]:
            packages.setdefault(normal(each.metadata["Name"]), each)
    own = packages.pop("gradmix-jax", None)
    more = optional(packages)
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": "gradmix_jax", "version": own.version if own else "0"},
        },
        "components": [component(each) for _, each in sorted(packages.items())] + more,
        "dependencies": dependencies(packages),
    }
    out = parser.parse_args().out
    with open(out, "w", encoding="utf-8") as file:
        json.dump(bill, file, indent=2)
        file.write("\n")
    print(f"{out}: {len(packages)} packages, and {len(more)} that the documentation and the extras would add")


if __name__ == "__main__":
    main()
