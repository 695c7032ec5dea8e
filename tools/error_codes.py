"""The error codes that the registry serves at ``/docs/errors``, from the tables of docs/reference/errors.md.

``python -m tools.error_codes`` writes them; run it after a change of the page. The registry has a file of its own,
because an installed registry has no docs.
"""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reference/errors.md"
MADE = ROOT / "registry/web/errors.yaml"
_MEMBERS = ("code", "status", "happened", "causes", "remedy")
_CELLS = re.compile(r"(?<!\\)\|")
_LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")
"""A link of the page, which leads nowhere from a registry: its words stay."""


def sections(page: str) -> list[dict[str, Any]]:
    """``{"name", "codes": [{"code", "status", "happened", "causes", "remedy"}]}`` for each part of the page."""
    found = list[dict[str, Any]]()
    for line in page.splitlines():
        if line.startswith("## "):
            found.append({"name": line.removeprefix("## "), "codes": []})
        elif line.startswith("| `"):
            cells = [cell.strip().replace(r"\|", "|") for cell in _CELLS.split(_LINK.sub(r"\1", line)[1:-1])]
            found[-1]["codes"].append({**dict(zip(_MEMBERS, cells, strict=True)), "code": cells[0].strip("`")})
    return [section for section in found if section["codes"]]


def main() -> None:
    """Writes the file."""
    text = yaml.safe_dump(sections(PAGE.read_text("utf-8")), allow_unicode=True, sort_keys=False, width=116)
    MADE.write_text(f"# Made by `python -m tools.error_codes` from docs/reference/errors.md\n{text}", "utf-8")


if __name__ == "__main__":
    main()
