"""What a run depends on that is not this project's: a digest of each user's class, saved result and file of counts.

A run that goes on with --resume keeps verdicts of the code that made them. So `run.json` holds these digests: of a
class, of its file and of the files that it imports beside it. Nothing is imported: imports are read from the source.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from zipfmax_reference.contestants import registry
from zipfmax_reference.runs.labels import files_of_counts

INSTALLED = {"site-packages", "dist-packages"}
"""Folders of packages whose files nobody edits: of these only the module itself and its packages are read."""


def digests(names: Sequence[str], labels: Sequence[str] = ()) -> dict[str, str]:
    """A digest for each name of a user's class or of `saved:DIR`, and for labels `counts:FILE`.

    Other names and labels are left out.

    Raises:
        NoSuchClassError: a class's file or its package is not there.
    """
    found = {}
    for name in names:
        if registry.runs_code_of_others(name):
            registry.check_place(name)
            found[name] = _digest(_files(name.rpartition(":")[0]))
        elif name.startswith("saved:"):
            found[name] = _digest(Path(name.removeprefix("saved:")).glob("*.npz"))
    for name in labels:
        if name.startswith("counts:"):
            files = (Path(file) for file in files_of_counts(name.removeprefix("counts:")))
            found[name] = _digest(file for file in files if file.is_file())
    return found


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for content in sorted(path.read_bytes() for path in files):
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _files(place: str) -> set[Path]:
    """The file of a module, and those that it imports from its own folder or package."""
    if place.endswith(".py"):
        folder, first = Path(place).resolve().parent, [Path(place).resolve()]
    else:
        spec = PathFinder.find_spec(place.partition(".")[0]) or PathFinder.find_spec(
            place.partition(".")[0], [str(Path.cwd())]
        )
        if spec is None or spec.origin is None:
            return set()
        origin = Path(spec.origin)
        folder = origin.parents[1 if origin.name == "__init__.py" else 0]
        first = list(_named(folder, place))
        if INSTALLED & {*folder.parts}:
            return {*first}
    found: set[Path] = set()
    left = first
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            left += [other for module in _imported(file, folder) for other in _named(folder, module)]
    return found


def _imported(file: Path, folder: Path) -> Iterator[str]:
    """Every name that might be a module, of the import statements of a file."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # told where it is imported
        return
    package = file.relative_to(folder).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *([node.module] if node.module else [])]
            yield ".".join(base)
            yield from (".".join([*base, alias.name]) for alias in node.names)


def _named(folder: Path, module: str) -> Iterator[Path]:
    """The files in a folder that importing a module executes: its packages', and its own."""
    path = folder
    for part in module.split("."):
        path = path / part
        for file in (path.with_name(f"{part}.py"), path / "__init__.py"):
            if file.is_file():
                yield file
