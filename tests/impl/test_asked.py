"""README's table of what users asked for: every row links to its thread and names a test that is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def rows():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = (
        readme.split("## Asked, and where it is answered", 1)[1]
        .split("\n| asked |", 1)[1]
        .split("\n\n", 1)[0]
    )
    return table.splitlines()[2:]


def test_every_row_links_to_a_thread():
    assert len(rows()) >= 9
    for row in rows():
        assert re.search(r"\(https://github.com/[\w-]+/[\w-]+/issues/\d+\)", row), row


def test_every_row_names_a_test_that_is_there():
    for row in rows():
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, name in named:
            assert f"def {name}(" in (ROOT / "tests/impl" / file).read_text(encoding="utf-8"), (file, name)
