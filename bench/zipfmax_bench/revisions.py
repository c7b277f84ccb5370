"""A git revision beside the working tree: an interpreter for each that imports that side's code.

Both are of the repository of the working directory: zipfmax's own, or one that holds a layer of its own. The
revision is checked out into a worktree. Each side sees its own packages first and this process's others after
them, so both compute with the same torch.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from zipfmax.errors import UsageError
from zipfmax_reference.contestants import registry

SOURCE_ROOTS = ("impl", "reference", "bench")
"""Of zipfmax's own repository."""
CUSTOMARY_ROOTS = (".", "src")
"""Of any other one."""
OLDEST_WORKER = "bench/zipfmax_bench/snapshot.py"
"""A file that came with the requests that the engine makes now."""
FORKING = "bench/zipfmax_bench/fork_server.py"


@dataclass(frozen=True)
class Side:
    """The code of a revision or of the working tree."""

    name: str
    """What it is called in a finding."""
    root: Path
    """Where it lies."""
    head: Path
    """The repository's working tree."""
    python: str
    """An interpreter that imports it."""

    @property
    def forks(self) -> bool:
        """Whether its workers can be forked: an older zipfmax can only start them."""
        return not is_zipfmax(self.root) or (self.root / FORKING).is_file()

    def implementation(self, name: str) -> str:
        """The name that an implementation has there: a class of a file is that of the side's own file.

        Raises:
            UsageError: the file is in another repository, or not in this revision.
        """
        place, _, attribute = name.rpartition(":")
        if not place.endswith(".py"):
            return name
        file = Path(place).resolve()
        if not file.is_relative_to(self.head):
            raise UsageError(f"{place} is not in the repository {self.head}: it has no revisions there")
        there = self.root / file.relative_to(self.head)
        if not there.is_file():
            raise UsageError(f"{place} is not in {self.name}: there is nothing to measure beside it")
        return f"{there}:{attribute}"


def repository_here() -> Path:
    """The top of the git repository that the working directory is in.

    Raises:
        UsageError: it is in none.
    """
    top = _run(["git", "rev-parse", "--show-toplevel"], "a revision needs a git repository: run it in one")
    return Path(top).resolve()


def is_zipfmax(repository: Path) -> bool:
    """Whether a checkout is of zipfmax, so that its implementations are what differs between revisions."""
    return (repository / OLDEST_WORKER).is_file()


def working_tree(repository: Path) -> str:
    """The checkout and its commit in words, and whether files differ from the commit."""
    described = named(repository, "--dirty")
    commit = described.removesuffix("-dirty")
    return f"the working tree of {repository} at {commit}{', with changes' if commit != described else ''}"


def named(repository: Path, what: str) -> str:
    """A revision by the nearest tag or by its commit."""
    return _run(["git", "-C", str(repository), "describe", "--always", what], "it cannot be described")


def commit_of(revision: str, repository: Path) -> str:
    """The commit that a revision names.

    Raises:
        UsageError: there is none, or it is of a zipfmax that cannot be measured.
    """
    commit = _run(
        ["git", "-C", str(repository), "rev-parse", "--verify", f"{revision}^{{commit}}"],
        f"no revision {revision!r} in {repository}",
    )
    lacks_worker = _fails(["git", "-C", str(repository), "cat-file", "-e", f"{commit}:{OLDEST_WORKER}"])
    if is_zipfmax(repository) and lacks_worker:
        raise UsageError(f"revision {revision!r} cannot be measured: it is older than {OLDEST_WORKER}")
    return commit


@contextmanager
def sides(base: str, repository: Path) -> Iterator[tuple[Side, Side]]:
    """The revision and the working tree, as long as the context lasts.

    Args:
        base: as git takes it.
        repository: a checkout.

    Raises:
        UsageError: no such revision, or one that cannot be measured.
    """
    with ExitStack() as stack:
        root = stack.enter_context(checkout(base, repository))
        then, now = (stack.enter_context(environment(each, repository)) for each in (root, repository))
        yield (
            Side(f"revision {base!r}", root, repository, then),
            Side("this revision", repository, repository, now),
        )


@contextmanager
def checkout(revision: str, repository: Path) -> Iterator[Path]:
    """A folder that holds a revision, as long as the context lasts.

    Raises:
        UsageError: no such revision, or one that cannot be measured or checked out.
    """
    commit = commit_of(revision, repository)
    with tempfile.TemporaryDirectory() as folder:
        source = (Path(folder) / "source").resolve()
        git = ["git", "-C", str(repository), "worktree"]
        _run([*git, "add", "--detach", str(source), commit], f"revision {revision!r} cannot be checked out")
        try:
            yield source
        finally:
            _run([*git, "remove", "--force", str(source)], f"the worktree {source} cannot be removed")


@contextmanager
def environment(root: Path, repository: Path) -> Iterator[str]:
    """A Python interpreter that imports the code in `root` first, as long as the context lasts.

    Args:
        root: the repository or a checkout of a revision of it.
        repository: whose own folders, if this process imports from them, are left out.
    """
    own = SOURCE_ROOTS if is_zipfmax(root) else CUSTOMARY_ROOTS
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False)
        site = sysconfig.get_path("purelib", "venv", {"base": folder})
        paths = [str((root / name).resolve()) for name in own] + _others(repository)
        Path(site, "checkout.pth").write_text("\n".join(paths) + "\n")
        yield str(Path(folder) / "bin" / "python")


def _others(repository: Path) -> list[str]:
    """What this process imports from, without the repository's source and the standard library."""
    installed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    standard = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
    found = []
    for entry in map(Path, filter(None, sys.path)):
        place = entry.resolve()
        is_standard = place in standard or (place.parent in standard and place.name == "lib-dynload")
        if place.is_dir() and not is_standard and not place.is_relative_to(repository):
            found.append(str(place))
    return list(dict.fromkeys([*found, *installed]))


def check_implementations(names: Sequence[str], repository: Path) -> None:
    """Refuse implementations that two revisions of a repository cannot differ in.

    Raises:
        UsageError: zipfmax's own or a peer's outside of zipfmax's repository.
    """
    if is_zipfmax(repository):
        return
    for name in names:
        if not registry.runs_code_of_others(name):
            raise UsageError(
                f"{name} is the same in both revisions of {repository}: give a layer of this repository, "
                "as --impl path/file.py:Class"
            )


def _fails(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


def _run(command: Sequence[str], failure: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"{failure}: {last}")
    return done.stdout.strip()
