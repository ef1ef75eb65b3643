"""Installs what ARGUMENT… names into the environment that runs this, from where pip is told to.

    .venv/bin/python .ci/install.py ARGUMENT…

By uv, which needs a quarter of pip's processor time and downloads side by side; by pip where uv
cannot be had, or cannot do it.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

PIP = (sys.executable, "-m", "pip")
UV = (sys.executable, "-m", "uv")
CONSTRAINTS = ("-c", "constraints.txt")

# Where packages come from, in pip's words and in uv's.
SOURCES = {
    "index-url": "--default-index",
    "extra-index-url": "--index",
    "find-links": "--find-links",
    "constraint": "--constraints",
    "trusted-host": "--allow-insecure-host",
}


def main(arguments: Sequence[str]) -> int:
    """The status of who installed it."""
    pip = [*PIP, "install", "--disable-pip-version-check", "--no-compile", *CONSTRAINTS]
    if subprocess.run([*pip, "--quiet", "uv"]).returncode == 0:
        settings = _settings()
        # As hard links, which cost nothing, to a cache that only this environment has had.
        cache = os.path.join(sys.prefix, ".uv")
        uv = [*UV, "pip", "install", "--python", sys.executable, "--cache-dir", cache]
        uv += ["--index-strategy", "unsafe-best-match", *_sources(settings), *CONSTRAINTS]
        status = subprocess.run([*uv, *arguments], env=_environment(settings)).returncode
        if status == 0:
            return 0
        sys.stderr.write("uv could not install it: pip does\n")
    return subprocess.run([*pip, *arguments]).returncode


def _settings() -> dict[str, str]:
    """What pip was told by files and environment; what stands in the way of another goes first."""
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True)
    settings: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        group, _, name = name.rpartition(".")
        settings.setdefault(group, {})[name] = str(ast.literal_eval(value))
    return {**settings["global"], **settings["install"], **settings[":env:"]}


def _sources(settings: Mapping[str, str]) -> Iterator[str]:
    for name, flag in SOURCES.items():
        for value in settings.get(name, "").split():
            yield from (flag, value)
    if settings.get("no-index", "0").lower() in ("1", "true", "yes", "on"):
        yield "--no-index"


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    names = {"cert": "SSL_CERT_FILE", "default-timeout": "UV_HTTP_TIMEOUT", "proxy": "ALL_PROXY"}
    told = {names[name]: value for name, value in settings.items() if name in names}
    return {**os.environ, **told}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
