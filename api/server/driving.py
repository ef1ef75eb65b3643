"""From `--engine` and `--engine-url` to the driver of a server of its own process."""

import logging
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from weightledger.api.server.settings import Settings
from weightledger.ledger.engines.vllm.engine import VllmEngine
from weightledger.ledger.engines.vllm.server import EngineUnreachable, Refused, Server
from weightledger.ledger.errors import EngineUnavailable, InvalidRequest
from weightledger.ledger.sql.database import parse_url

logger = logging.getLogger(__name__)

_WAIT_STEP_S = 0.5


def drive(settings: Settings) -> tuple[str, VllmEngine]:
    """The model's name in the ledger, its folder's, and the driver of the server.

    Waits for the server, which may be started later than this one. Raises InvalidRequest without a
    URL or a checkpoint folder, EngineUnavailable when the server does not come.
    """
    if settings.engine_url is None:
        raise InvalidRequest(f"--engine {settings.engine} needs --engine-url", param="engine_url")
    folder = Path(settings.model).resolve()
    name = folder.name
    server = Server(
        settings.engine_url, api_key=settings.engine_api_key, timeout_s=settings.engine_timeout_s
    )
    tensors = load_checkpoint(folder)
    _wait(server, settings)
    database = _from_elsewhere(settings.update_config().url)
    return name, VllmEngine(
        tensors,
        server,
        model=name,
        database=database,
        adapter_root=settings.data_dir / "adapters",
    )


def _wait(server: Server, settings: Settings) -> None:
    """Wait until the server answers, whatever it says."""
    deadline = time.monotonic() + settings.engine_wait_s
    told = False
    while True:
        try:
            server.version()
        except EngineUnreachable as error:
            if time.monotonic() >= deadline:
                raise EngineUnavailable(
                    f"{settings.engine} did not answer within --engine-wait-s "
                    f"{settings.engine_wait_s:g}: {error}"
                ) from error
            if not told:
                logger.info(
                    "waiting for %s at %s, %g s at most",
                    settings.engine,
                    settings.engine_url,
                    settings.engine_wait_s,
                )
                told = True
            time.sleep(_WAIT_STEP_S)
        except Refused:
            return
        else:
            return


def load_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a Hugging Face folder's safetensors files, by its name there."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InvalidRequest(
            f"--model must be a folder with safetensors files, got {folder}", param="model"
        )
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= load_file(file)
    return tensors


def _from_elsewhere(url: str) -> str:
    """A database URL that means the same in a process with another working directory."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        parsed = parsed.set(database=str(Path(parsed.database).resolve()))
    return parsed.render_as_string(hide_password=False)
