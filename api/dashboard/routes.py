"""The dashboard's routes. Every page is a URL; what it shows the REST API gives as JSON."""

import threading

from fastapi import Depends

from weightledger import DynamicModelManager
from weightledger.api.dashboard import doors, looking, managing
from weightledger.api.dashboard.sessions import Sessions
from weightledger.api.dashboard.shell import Shell
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.keyring import Keyring
from weightledger.api.rest.scopes import admitted
from weightledger.ledger.audit.notary import Notary


def router(
    manager: DynamicModelManager,
    keyring: Keyring,
    sessions: Sessions,
    notary: Notary,
    ending: threading.Event,
) -> Declared:
    """All pages, the files they load, and the way in. `ending` is set when the server stops."""
    shell = Shell(manager, sessions)
    routes = Declared(include_in_schema=False)
    routes.include(doors.router(keyring, sessions))
    admitting = [Depends(admitted)]
    routes.include(looking.router(shell, notary, ending), dependencies=admitting)
    routes.include(managing.router(shell, notary), dependencies=admitting)
    return routes
