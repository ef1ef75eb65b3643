"""Packages with entry points, as an installation leaves them."""

from collections.abc import Mapping
from pathlib import Path


def install(site: Path, package: str, group: str, entries: Mapping[str, str], source: str) -> None:
    """Put a package of one module, which has the package's name, where Python finds it."""
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [f"{name} = {value}\n" for name, value in entries.items()]
    (info / "entry_points.txt").write_text(f"[{group}]\n{''.join(lines)}")
    (site / f"{package}.py").write_text(source)
