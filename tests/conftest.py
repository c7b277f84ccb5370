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
