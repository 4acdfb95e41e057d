"""Where results go: a JSON file of each benchmark in results/, and a table made of it in README.md."""

from pathlib import Path

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"


def write_table(name: str, table: str) -> None:
    """Put `table` between the markers `<!-- name -->` and `<!-- /name -->` of README.md, which must be there."""
    before, begin, rest = README.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (begin and end):
        raise SystemExit(f"benchmarks/README.md has no markers for {name!r}")
    README.write_text(f"{before}{begin}{table}\n{end}{after}")
