"""What a server says once it listens."""

import os
from importlib.metadata import version

from weightledger import DynamicModelManager
from weightledger.api.server.settings import Settings
from weightledger.ledger.secrets import mask


def greeting(manager: DynamicModelManager, settings: Settings, url: str, *, asks: bool) -> str:
    """One block: what is served, from where, to whom (`asks`: for a key), and how to stop it."""
    database = mask(settings.update_config().url)
    if settings.engine == "none":
        held = "without a model: replicas answer inference"
    elif settings.engine != "embedded":
        held = f"shown by {settings.engine} at {mask(str(settings.engine_url))}"
    else:
        held = "in this process"
    access = "with an API key" if asks else "no API key: loopback only"
    if not settings.writes_enabled:
        access += ", no writes"
    lines = {
        "address": url,
        "dashboard": f"{url}/",
        "docs": f"{url}/docs",
        "model": f"{manager.model_name} at seq {manager.log.live.head.state_seq}, {held}",
        "data": str(settings.data_dir.resolve()),
        "database": database,
        "access": access,
        "stop": f"Ctrl-C, or: kill {os.getpid()}",
    }
    said = "".join(f"  {name:<9} {text}\n" for name, text in lines.items())
    return f"Weight Ledger {version('weightledger')} is serving\n{said}"
