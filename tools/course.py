"""The course in its reading order, which the sidebar in _quarto.yml gives; for tools and tests."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def sidebar(root: Path = ROOT) -> list:
    """The entries of _quarto.yml's sidebar: (section or None, file, text or None)."""
    website = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))["website"]
    entries = []
    for item in website["sidebar"]["contents"]:
        section = item.get("section") if isinstance(item, dict) else None
        for entry in item["contents"] if section else [item]:
            entry = {"href": entry} if isinstance(entry, str) else entry
            entries.append((section, entry["href"], entry.get("text")))
    return entries


def find_notebooks(folder: Path) -> list[Path]:
    """All notebooks below a folder, without those that an editor or a build keeps for itself."""
    return sorted(path for path in folder.rglob("*.ipynb")
                  if not any(part[0] in "._" for part in path.relative_to(folder).parts))


def notebooks(root: Path = ROOT) -> list[Path]:
    """All notebooks in nbs/ in reading order; those that the sidebar does not know come last."""
    places = {file: place for place, (_, file, _) in enumerate(sidebar(root))}
    found = find_notebooks(root / "nbs")
    return sorted(found, key=lambda path: places.get(path.relative_to(root / "nbs").as_posix(), len(places)))


def path_of(stem: str, root: Path = ROOT) -> Path:
    """Where the notebook of this name lies: "03_elbo" is in nbs/tutorial."""
    (path,) = [path for path in find_notebooks(root / "nbs") if path.stem == stem]
    return path


def number_of(path: Path | str) -> str:
    """The number of a chapter, "12" of engine/12_recipes.ipynb; "" for a page without one."""
    number = re.match(r"(\d\d)_", Path(path).name)
    return number[1] if number else ""
