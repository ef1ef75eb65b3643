"""A state as a server gave it: a safetensors file."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from weightledger.ledger.errors import StorageError


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A state in a file; see `judges.StateToJudge`."""

    seq: int
    version: str | None
    file: Path

    @property
    def weights(self) -> Mapping[str, torch.Tensor]:
        """The model's tensors by bare name; those beside them by full name."""
        return load_file(self.file)

    def write(self, out: Path) -> None:
        """The file as the server gave it, under another name."""
        try:
            shutil.copyfile(self.file, out)
        except OSError as error:
            raise StorageError(f"cannot write {out}: {error}") from error
