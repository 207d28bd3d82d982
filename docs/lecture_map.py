"""Bring the line numbers of lecture.md up to date: `python docs/lecture_map.py`.

Every row of its tables has a link to a line and, in the next cell, what stands there. The line is found by
that snippet, which must occur in exactly one line of the file. With --check nothing is written.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

DOCUMENT = Path(__file__).with_name("lecture.md")
# [name#L12](../path/name#L12) | `code`
ROW = re.compile(
    r"\[(?P<name>[^\]#]+)#L\d+\]\((?P<path>[^)#]+)#L(?P<line>\d+)\) \| "
    r"(?P<tick>`+) ?(?P<code>.+?) ?(?P=tick) \|"
)


def lines_with(path: Path, code: str) -> list[int]:
    """The numbers of the lines of a file that hold `code`, from 1."""
    return [number for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1) if code in line]


def refreshed(text: str, folder: Path) -> str:
    """The document's text with every line number as it is now.

    Raises ValueError, with all rows at fault, where a snippet is in no line of its file, or in several.
    """
    faults = []

    def row(match: re.Match[str]) -> str:
        # A bar would end the table's cell; it is written with a backslash.
        code = match["code"].replace("\\|", "|")
        found = lines_with(folder / match["path"], code)
        if len(found) != 1:
            where = f"in the lines {', '.join(map(str, found))}" if found else "nowhere"
            faults.append(f"{match['path']}: {code!r} is {where}")
            return match[0]
        tick = match["tick"]
        pad = " " if "`" in code else ""
        link = f"[{match['name']}#L{found[0]}]({match['path']}#L{found[0]})"
        return f"{link} | {tick}{pad}{match['code']}{pad}{tick} |"

    result = ROW.sub(row, text)
    if faults:
        raise ValueError("\n".join(faults))
    return result


def main(arguments: list[str]) -> int:
    """Rewrite the document, or with --check say whether it would change."""
    text = DOCUMENT.read_text(encoding="utf-8")
    try:
        result = refreshed(text, DOCUMENT.parent)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if "--check" in arguments:
        return int(result != text)
    DOCUMENT.write_text(result, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
