"""Installed packages that bring a rule, written into a folder; the fixture is in `conftest`."""

from pathlib import Path

from weightledger.rules import registry


def install(site: Path, package: str, rule_id: str) -> None:
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    entry = f"[{registry.ENTRY_POINTS}]\n{rule_id} = {package}:Decay\n"
    (info / "entry_points.txt").write_text(entry)
    (site / f"{package}.py").write_text(
        "from dataclasses import dataclass\n"
        "from weightledger.rules import Activity, Proposal\n"
        "@dataclass(frozen=True)\n"
        "class Decay:\n"
        "    '''Weights decay.'''\n"
        f"    id, version, summary = {rule_id!r}, 3, 'weights decay'\n"
        "    parameter, activities = ('out', 'in'), {'x': Activity(('batch', 'in'), 'input')}\n"
        "    learning_rate: float = 0.5\n"
        "    def init(self, weight):\n"
        "        return {}\n"
        "    def propose(self, weight, activities, state):\n"
        "        return Proposal(-self.learning_rate * weight, {})\n"
    )


def spoil(site: Path, package: str, old: str, new: str) -> None:
    module = site / f"{package}.py"
    text = module.read_text()
    assert old in text
    module.write_text(text.replace(old, new))
