"""Where results go: a JSON file of each benchmark in results/, and a table made of it in README.md."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"


def write_result(
    result: dict[str, Any], table: str, output: Path | None, shown: tuple[Path, str] | None = None
) -> Path | None:
    """Print the table, and write the result to `output`, or else, with its table, to where the project shows it.

    `shown` is that file and the table's name, None where the run is not one to show. Returns the file, if there is one.
    """
    if output is None and shown is not None:
        output = shown[0]
        write_table(shown[1], table)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
    print(table)
    return output


def write_table(name: str, table: str) -> None:
    """Put `table` between the markers `<!-- name -->` and `<!-- /name -->` of README.md."""
    before, _, after = _parts(name)
    README.write_text(before + table + after)


def written_table(name: str) -> str:
    """The table that is there."""
    return _parts(name)[1]


def _parts(name: str) -> tuple[str, str, str]:
    text, begin, end = README.read_text(), f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    table, found_too, after = rest.partition(end)
    if not (found and found_too):
        raise SystemExit(f"benchmarks/README.md has no lines {begin.strip()} and {end.strip()}")
    return before + begin, table, end + after
