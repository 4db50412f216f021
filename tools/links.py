"""Write links to the repository into the notebooks and the README, or take them out.

    python tools/links.py

settings.ini names the repository. As long as its `user` is empty there is none, and this removes all
links. Otherwise every notebook gets a Colab badge and a cell that installs the package in Colab, and
the README gets the state of the tests and the address of the site. A second run changes nothing.
"""

import json
import re
from configparser import ConfigParser
from pathlib import Path

from course import notebooks

ROOT = Path(__file__).resolve().parent.parent
BADGE, INSTALL = "colab-badge", "colab-install"  # the ids of the two cells
MARKS = "<!-- links: begin -->", "<!-- links: end -->"


def read_settings(root: Path) -> dict:
    """settings.ini; the repository has a name as soon as `user` is not empty."""
    config = ConfigParser(delimiters=["="])
    config.read(root / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def badge_cell(name: str, settings: dict) -> dict:
    """A markdown cell that opens this notebook in Colab; `name` is its path below nbs/."""
    address = "https://colab.research.google.com"
    source = (f"[![Open in Colab]({address}/assets/colab-badge.svg)]({address}/github/"
              f"{settings['user']}/{settings['repo']}/blob/{settings['branch']}/nbs/{name})")
    return {"cell_type": "markdown", "id": BADGE, "metadata": {}, "source": [source]}


def install_cell(settings: dict) -> dict:
    """A code cell that installs the package in Colab, and does nothing anywhere else."""
    source = ["#| hide\n",
              'if "google.colab" in str(get_ipython()):\n',
              f'    package = "git+{settings["git_url"]}@{settings["branch"]}"\n',
              '    get_ipython().run_line_magic("pip", f"install --quiet {package}")']
    return {"cell_type": "code", "execution_count": None, "id": INSTALL, "metadata": {}, "outputs": [],
            "source": source}


def link_notebook(path: Path, name: str, settings: dict):
    """Put both cells behind the title, or take them out; `name` is the path below nbs/."""
    before = path.read_text(encoding="utf-8")
    notebook = json.loads(before)
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] not in (BADGE, INSTALL)]
    if settings["user"]:
        notebook["cells"][1:1] = [badge_cell(name, settings), install_cell(settings)]
    after = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    if after != before:
        path.write_text(after, encoding="utf-8")


def link_readme(path: Path, settings: dict):
    """Fill the part between the two marks below the title."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(rf"{MARKS[0]}.*?{MARKS[1]}\n\n", "", text, flags=re.S)
    if settings["user"]:
        tests = f"{settings['git_url']}/actions/workflows/test.yml"
        links = (f"[![tests]({tests}/badge.svg)]({tests}) · "
                 f"[Read the course]({settings['doc_host']}{settings['doc_baseurl']}/)")
        text = re.sub(r"\A(# .*\n\n)", rf"\1{MARKS[0]}\n{links}\n{MARKS[1]}\n\n", text)
    path.write_text(text, encoding="utf-8")


def main(root: Path = ROOT):
    settings = read_settings(root)
    for path in notebooks(root):
        link_notebook(path, path.relative_to(root / "nbs").as_posix(), settings)
    link_readme(root / "README.md", settings)
    print(f"links to {settings['git_url']}" if settings["user"] else "no repository named: no links")


if __name__ == "__main__":
    main()
