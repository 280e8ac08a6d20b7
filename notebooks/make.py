"""Write the notebooks from notebooks/source/*.md: text, and cells as ```python blocks, each followed by a cell's name.

python notebooks/make.py              write the cells; keep the saved outputs of notebooks whose code is unchanged
python notebooks/make.py --execute    also run the notebooks from top to bottom and save their outputs

The address of the repository is stated only in pyproject.toml, as the entry `Repository` of [project.urls]. With an
address, the notebooks have a badge that opens them on Colab, and clone the repository there; without one, they explain
how to upload a copy.
"""

import re
import sys
import tomllib
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
CELL = re.compile(r"^```python *(\w*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)

WITH_ADDRESS = """{badge}({link})

Inside a checkout of the project, the next cell does nothing (`make setup` created the environment). On Colab or
elsewhere, it clones and installs the project; it keeps the installed JAX, which fits the machine, unless that is too
old."""

WITHOUT_ADDRESS = """{badge}(https://colab.research.google.com)

Inside a checkout of the project, the next cell does nothing (`make setup` created the environment). On Colab:

1. In a checkout, run `git archive --output=gradmix_jax.zip HEAD`.
2. On Colab, open this file with *File > Upload notebook*, then upload `gradmix_jax.zip` under *Files* on the left.

The cell then unpacks and installs the project; it keeps the installed JAX, which fits the machine, unless that is too
old."""

SETUP = '''import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

REPOSITORY = "{repository}"  # to clone from; empty: gradmix_jax.zip is unpacked

checkouts = [folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "launch" / "setup.sh").exists()]
if checkouts:
    os.chdir(checkouts[0])
else:
    if REPOSITORY:
        subprocess.run(["git", "clone", "--quiet", "--depth=1", REPOSITORY, "gradmix_jax"], check=True)
    elif Path("gradmix_jax.zip").exists():
        shutil.unpack_archive("gradmix_jax.zip", "gradmix_jax")
    else:
        raise FileNotFoundError("gradmix_jax.zip is not here; upload it as the text above says, and rerun this cell.")
    os.chdir("gradmix_jax")
    # Pinning the installed versions keeps pip from replacing them.
    old = tuple(int(part) for part in version("jax").split(".")[:2]) < {least}
    kept = [] if old else [f"{{name}}=={{version(name)}}" for name in ("jax", "jaxlib", "numpy")]
    project = ".[cuda12]" if old and shutil.which("nvidia-smi") else "."
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--editable", project, *kept], check=True)
    if old:
        print("a newer JAX was installed; if an import fails below, restart the runtime and run all cells again")
if os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())


def run(*arguments):
    """Run Python as on the command line, show its output, and raise an error if it fails."""
    environment = os.environ | {{"TQDM_DISABLE": "1"}}  # a progress bar is a line for every move here
    command = [sys.executable, *arguments]
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command, env=environment, **output) as process:
        for line in process.stdout:
            print(line, end="")
    if process.returncode:
        raise RuntimeError("the command failed; see its output above")


# The project's tests run every notebook in a few seconds.
QUICK = bool(os.environ.get("GRADMIX_QUICK"))
'''


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def address() -> str:
    """The repository's address; "" if there is none."""
    return project().get("urls", {}).get("Repository", "").removesuffix("/").removesuffix(".git")


def least_jax() -> tuple[int, int]:
    """The oldest JAX that the project supports."""
    (least,) = [
        re.fullmatch(r"jax>=(\d+)\.(\d+)", each) for each in project()["dependencies"] if each.startswith("jax>")
    ]
    return int(least[1]), int(least[2])


def setup_cells(name: str, repository: str) -> list:
    """The text with the badge, and the cell that sets up the project."""
    text = WITHOUT_ADDRESS.format(badge=BADGE)
    if repository:
        # Colab opens notebooks on a code host by their address.
        place = re.sub(r"^https://(\w+)\.com/", r"\1/", repository)
        link = f"https://colab.research.google.com/{place}/blob/main/notebooks/{name}.ipynb"
        text = WITH_ADDRESS.format(badge=BADGE, link=link)
    code = SETUP.format(repository=repository, least=least_jax()).rstrip()
    return [new_markdown_cell(text, id="setup_text"), new_code_cell(code, id="setup")]


def cells_of(source: str) -> list:
    """The cells of a source, without its introduction."""
    cells, place, number = [], 0, 0
    for match in [*CELL.finditer(source), None]:
        text = source[place : match.start() if match else len(source)].strip()
        if text:
            number += 1
            cells.append(new_markdown_cell(text, id=f"text{number}"))
        if match:
            number += 1
            cells.append(new_code_cell(match[2].rstrip(), id=match[1] or f"code{number}"))
            place = match.end()
    return cells


def make(name: str, repository: str | None = None):
    """The notebook of a source, without outputs; the setup comes before its first section."""
    lead, section, rest = (FOLDER / "source" / f"{name}.md").read_text().partition("\n## ")
    setup = setup_cells(name, address() if repository is None else repository)
    cells = [new_markdown_cell(lead.strip(), id="lead"), *setup, *cells_of(section + rest)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def execute(notebook):
    """Run all cells in the folder of the notebooks; paths of this machine are removed from their output."""
    import nbclient

    client = nbclient.NotebookClient(
        notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if "text" in output:
                output["text"] = output["text"].replace(f"{ROOT}/", "")
    return notebook


def keep_outputs(notebook, path: Path) -> None:
    """Take over the outputs of an existing notebook with the same code, except for the setup, which prints nothing."""
    if not path.exists():
        return
    before = nbformat.read(path, as_version=4)
    code = lambda each: [cell.source for cell in each.cells if cell.cell_type == "code" and cell.id != "setup"]
    if code(before) == code(notebook):
        saved = [cell for cell in before.cells if cell.cell_type == "code"]
        for cell, old in zip([cell for cell in notebook.cells if cell.cell_type == "code"], saved):
            cell.outputs, cell.execution_count = old.outputs, old.execution_count


def main(arguments: list[str]) -> None:
    names = [each for each in arguments if not each.startswith("--")]
    for source in sorted((FOLDER / "source").glob("*.md")):
        if names and source.stem not in names:
            continue
        notebook, path = make(source.stem), FOLDER / f"{source.stem}.ipynb"
        if "--execute" in arguments:
            execute(notebook)
        else:
            keep_outputs(notebook, path)
        nbformat.write(notebook, path)
        print(path.relative_to(ROOT), f"{path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
