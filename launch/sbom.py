"""Write a software bill of materials of this Python environment: CycloneDX 1.5 JSON, from installed metadata alone.

python launch/sbom.py --out=sbom.json
"""

import argparse
import json
import re
from importlib import metadata

# Classifiers of a license -> SPDX identifier; others go by the text that the package gives.
LICENSES = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: MIT License": "MIT",
    "License :: OSI Approved :: BSD License": "BSD-3-Clause",
    "License :: OSI Approved :: ISC License (ISCL)": "ISC",
    "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "License :: OSI Approved :: Python Software Foundation License": "PSF-2.0",
}


def component(found: metadata.Distribution) -> dict:
    """One package: name, version, purl, license and the RECORD's digest algorithm where there is one."""
    name = re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower()
    entry = {
        "type": "library",
        "bom-ref": f"pkg:pypi/{name}@{found.version}",
        "name": name,
        "version": found.version,
        "purl": f"pkg:pypi/{name}@{found.version}",
    }
    if found.metadata.get("Summary"):
        entry["description"] = found.metadata["Summary"]
    licenses = license_of(found)
    return entry | ({"licenses": licenses} if licenses else {})


def license_of(found: metadata.Distribution) -> list[dict]:
    """As CycloneDX has it: an expression, identifiers, or a name in the package's own words."""
    if found.metadata.get("License-Expression"):
        return [{"expression": found.metadata["License-Expression"]}]
    ids = [LICENSES[each] for each in found.metadata.get_all("Classifier") or () if each in LICENSES]
    if ids:
        return [{"license": {"id": each}} for each in dict.fromkeys(ids)]
    words = (found.metadata.get("License") or "").strip().splitlines()
    return [{"license": {"name": words[0][:80]}}] if words else []


def dependencies(packages: dict[str, metadata.Distribution]) -> list[dict]:
    """What each package needs of the others, extras left out."""
    normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
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
            packages.setdefault(re.sub(r"[-_.]+", "-", each.metadata["Name"]).lower(), each)
    own = packages.pop("gradmix-jax", None)
    bill = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "name": "gradmix_jax", "version": own.version if own else "0"},
        },
        "components": [component(each) for _, each in sorted(packages.items())],
        "dependencies": dependencies(packages),
    }
    out = parser.parse_args().out
    with open(out, "w", encoding="utf-8") as file:
        json.dump(bill, file, indent=2)
        file.write("\n")
    print(f"{out}: {len(bill['components'])} packages")


if __name__ == "__main__":
    main()
