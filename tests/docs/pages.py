"""Code blocks of pages, which tests run."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def named_blocks(page: str, language: str = "python") -> dict[str, str]:
    """The blocks that the page names as files, such as ```` ```python shop.py ````, by name."""
    blocks = re.findall(rf"^```{language} ([\w./-]+)\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    assert len({name for name, _ in blocks}) == len(blocks), "two blocks have one name"
    return dict(blocks)


def block_with(page: str, words: str) -> str:
    """The one Python block of the page that holds these words. A … in it is an ``...``."""
    blocks: list[str] = re.findall(r"^```python[^\n]*\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    (found,) = [block for block in blocks if words in block]
    return found.replace("…", "...")
