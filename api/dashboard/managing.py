"""Pages to act from and to check by: versions, rolling back, metrics, trials, audit, keys."""

from fastapi import Request, Response

from weightledger.api.dashboard import facts
from weightledger.api.dashboard.shell import PageRoute, Shell
from weightledger.api.items import replica_item, rollout_item
from weightledger.api.rest import queries
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.scopes import needs
from weightledger.ledger.audit.notary import Notary
from weightledger.ledger.fleet.served import fleet
from weightledger.ledger.history.rollouts import latest
from weightledger.ledger.store import EventFilter

_MOVERS = 5
_ROLLOUTS = 5
_PAGE = 100
_LOOKED_AT = 500  # updates, for those of learning rules


def router(shell: Shell, notary: Notary) -> Declared:
    """The pages; what their buttons do is the REST API's."""
    manager = shell.manager
    routes = Declared(route_class=PageRoute)
    log = manager.log
    history = log.history

    @routes.get("/ui/versions")
    def versions(request: Request, before: queries.Seq | None = None) -> Response:
        listed, older = facts.versions(history, _PAGE, before)
        return shell.show(
            request, "versions.html", "/v1/models/versions", versions=listed, older=older
        )

    @routes.get("/ui/rollback")
    def rollback(request: Request, to: str) -> Response:
        return shell.show(
            request,
            "rollback.html",
            f"/v1/models/diff?from=head&to={to}",
            dialog=facts.rollback(manager, to),
            movers=_MOVERS,
        )

    @routes.get("/ui/metrics")
    def metrics(request: Request) -> Response:
        return shell.show(request, "metrics.html", "/v1/models/metrics", current=manager.metrics())

    @routes.get("/ui/trials")
    def trials(request: Request) -> Response:
        listed = facts.trials(manager)
        return shell.show(
            request,
            "trials.html",
            "/v1/models/trials",
            running=[one for one in listed if one["status"] == "running"],
            ended=[one for one in listed if one["status"] != "running"],
        )

    @routes.get("/ui/fleet")
    def replicas(request: Request) -> Response:
        return shell.show(
            request,
            "fleet.html",
            "/v1/fleet",
            replicas=[replica_item(one) for one in fleet(history)],
            rollouts=[rollout_item(one) for one in latest(history.store, _ROLLOUTS)],
        )

    @routes.get("/ui/audit")
    def audit(request: Request) -> Response:
        counted = history.activity(EventFilter())
        by_actor: dict[str | None, int] = {}
        by_kind: dict[str, int] = {}
        for one in counted:
            by_actor[one.actor] = by_actor.get(one.actor, 0) + one.events
            by_kind[one.kind] = by_kind.get(one.kind, 0) + one.events
        return shell.show(
            request,
            "audit.html",
            "/v1/models/activity",
            by_actor=sorted(by_actor.items(), key=lambda pair: -pair[1]),
            by_kind=sorted(by_kind.items(), key=lambda pair: -pair[1]),
            total=sum(by_kind.values()),
            vouched=facts.vouched(manager, notary),
            approvals=facts.approvals(log),
        )

    @routes.get("/ui/keys", openapi_extra=needs("read"))
    def keys(request: Request) -> Response:
        admin = shell.includes(request, "admin")
        return shell.show(
            request,
            "keys.html",
            "/v1/keys",
            admin=admin,
            keys=facts.keys(manager) if admin else [],
            two_persons=manager.config.two_person_rule,
        )

    @routes.get("/ui/learning")
    def learning(request: Request) -> Response:
        kinds = EventFilter(kinds=["updated", "update_rejected"])
        touched = history.events(kinds, limit=_LOOKED_AT)
        learnt = [item for item in facts.items(history, touched) if "learnt" in item["facts"]]
        return shell.show(
            request,
            "learning.html",
            "/v1/models/updates?kind=updated",
            events=learnt[:_PAGE],
            feedback=facts.feedback(learnt),
            looked_at=_LOOKED_AT,
        )

    return routes
