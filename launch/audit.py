"""Audit files of pinned requirements with pip-audit; run by launch/audit.sh, which installs it.

python launch/audit.py requirements.txt docs/requirements.txt
"""

import json
import subprocess
import sys


def found(requirements: str) -> tuple[list[dict], str]:
    """(pip-audit's findings for each package, its error if there are none)."""
    words = ["--requirement", requirements, "--format=json", "--progress-spinner=off"]
    # The pins are complete, so nothing is resolved or installed.
    command = [sys.executable, "-m", "pip_audit", *words, "--no-deps", "--disable-pip"]
    result = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(result.stdout)["dependencies"], ""
    except (ValueError, KeyError):
        lines = result.stderr.strip().splitlines()
        return [], lines[-1][:300] if lines else f"pip-audit ended with status {result.returncode}"


def report(packages: list[dict], problem: str) -> tuple[list[str], int]:
    """(lines to print, exit status)."""
    vulnerable = [each for each in packages if each.get("vulns")]
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    if len(unknown) == len(packages):
        why = problem or f"none of the {len(packages)} packages could be looked up; is there a network?"
        return [f"audit skipped: {why}"], 0
    lines = [
        f"{each['name']} {each['version']}: {vulnerability['id']}, fixed in "
        f"{', '.join(vulnerability.get('fix_versions') or ()) or 'no version'}"
        for each in vulnerable
        for vulnerability in each["vulns"]
    ]
    if unknown:
        lines.append(f"not audited, {len(unknown)} of {len(packages)} packages: {', '.join(unknown)}")
    lines.append(f"{len(vulnerable)} of {len(packages) - len(unknown)} audited packages have a known vulnerability")
    return lines, int(bool(vulnerable))


def main() -> None:
    statuses = []
    for requirements in sys.argv[1:]:
        lines, status = report(*found(requirements))
        statuses.append(status)
        print("\n".join(f"{requirements}: {line}" for line in lines), flush=True)
    sys.exit(max(statuses))


if __name__ == "__main__":
    main()
