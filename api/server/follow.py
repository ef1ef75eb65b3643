"""The composition root of a replica: settings in, a process that follows and serves out."""

import contextlib
import logging
from dataclasses import replace

from weightledger import DynamicModelManager, Ledger
from weightledger.api.rest.writer import WriterServer
from weightledger.api.server.listening import bound, url_of
from weightledger.api.server.serve import engine_of, figures, prepare, require_key, run
from weightledger.api.server.settings import Settings
from weightledger.api.server.stopping import Stop
from weightledger.ledger import permissions
from weightledger.ledger.errors import InvalidRequest, NotFound
from weightledger.ledger.fleet.follower import Following
from weightledger.ledger.fleet.readiness import Limits
from weightledger.ledger.following import refusal, replica_name

logger = logging.getLogger(__name__)

_CONNECTIONS = 2


def follow(settings: Settings, stop: Stop | None = None) -> None:
    """Follow and serve until told to stop; raises a LedgerError when it cannot start.

    The data folder is not held: nothing of the ledger is written there.
    """
    require_key(settings)
    prepare()
    if settings.engine == "none":
        raise InvalidRequest(
            "a replica answers inference or drives who does: --engine must be embedded, vllm or"
            " aphrodite, got none",
            param="engine",
        )
    name = replica_name(settings.replica)
    # What a replica does not do: judge, decide, sign.
    settings = replace(
        settings,
        policy="off",
        evaluator=(),
        two_person_rule=False,
        sign_every_s=0,
        replica=name,
    )
    database = settings.update_config().url
    with contextlib.ExitStack() as opened:
        listener = opened.enter_context(bound(settings.host, settings.port))
        url = url_of(listener)
        permissions.make_folder(settings.data_dir)
        ledger = opened.enter_context(
            Ledger.open(database, upgrade=False, connections=_CONNECTIONS)
        )
        logger.info("loading the model %s", settings.model)
        model, engine, _ = engine_of(settings)
        known = ledger.models()
        if model not in known:
            raise NotFound(
                f"Model {model!r} not found; registered: {', '.join(known) or 'none'}. A replica"
                " follows what a writer has registered: start `weightledger serve` on this database"
                " first"
            )
        logger.info("following the log of %s as %s", model, name)
        limits = Limits(settings.max_stale_s, settings.max_lag_s)
        manager = DynamicModelManager(
            engine,
            model,
            settings.lora_config(),
            config=settings.update_config(),
            ledger=ledger,
            following=Following(
                *(name, refusal(name), url, settings.wake, limits, settings.rolling),
                prepares=settings.prepares,
            ),
        )
        opened.callback(manager.close)
        opened.enter_context(figures(settings, manager))
        writer = WriterServer(database, settings.url, refusal(name), proxied=settings.proxy_writes)
        run(manager, settings, listener, url, stop, writer=writer)
