"""Reading large parts takes memory that was freed before, not new pages for each of them."""

import contextlib
import subprocess
import sys
from pathlib import Path

import numpy as np

from weightledger.ledger.blobs.sql import SqlBlobs
from weightledger.ledger.sql.database import Database
from weightledger.ledger.sql.schema import open_schema
from weightledger.ledger.tensors.digest import content_digest

READS, PART_BYTES, PAGE_BYTES = 8, 4_000_000, 4096

READING = """
import contextlib, resource, sys
import numpy as np
from weightledger.ledger.blobs.sql import SqlBlobs
from weightledger.ledger.sql.database import Database

digest, out = bytes.fromhex(sys.argv[2]), np.empty(int(sys.argv[3]), np.uint8)
with contextlib.closing(Database.connect(sys.argv[1])) as database:
    blobs = SqlBlobs(database)
    blobs.read_into(digest, out)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(int(sys.argv[4])):
        blobs.read_into(digest, out)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_parts_are_read_into_memory_that_is_there(tmp_path: Path) -> None:
    url, data = f"sqlite:///{tmp_path / 'a.db'}", np.ones(PART_BYTES, np.uint8)
    digest = content_digest(data)
    with contextlib.closing(Database.connect(url)) as database:
        open_schema(database)
        SqlBlobs(database).put(digest, data)
    command = [sys.executable, "-c", READING, url, digest.hex(), str(PART_BYTES), str(READS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Otherwise each takes a part's pages anew, for the driver's copy or for Python's.
    assert int(done.stdout) < READS * PART_BYTES / PAGE_BYTES / 4
