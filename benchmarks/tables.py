"""Where results go: a JSON file of each benchmark in results/, and a table made of it in README.md."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"


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
