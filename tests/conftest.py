"""Settings of every test: no example has a deadline, so a busy machine turns no claim red."""

import gc

import pytest
from hypothesis import settings

settings.register_profile("zipfmax", deadline=None)
settings.load_profile("zipfmax")


@pytest.fixture(autouse=True, scope="module")
def collections_leave_imports_out() -> None:
    """What was imported and made before a file's tests is not looked through by each of their collections.

    torch and SciPy alone are over a million objects: looking through them takes a second.
    """
    gc.collect()
    gc.freeze()


LONGEST = (
    "test_triton.py",
    "test_page_in_browser.py",
    "test_sweep.py",
    "test_pytest_plugin.py",
    "test_recipe.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first: `make test` gives each file to one of two processes, in this order."""
    first = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path.name, len(first)))
