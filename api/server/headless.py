"""`--engine none`: a writer that holds a model's weights and cannot infer."""

from weightledger.api.server.settings import Settings
from weightledger.ledger import permissions
from weightledger.ledger.engines.state import StateEngine
from weightledger.ledger.errors import InvalidRequest
from weightledger.ledger.ledger import Ledger


def hold_weights(settings: Settings) -> tuple[str, StateEngine]:
    """The name of a model that the ledger has, and its weights as they are there.

    Raises NotFound, naming the models there are, for another; InvalidRequest with an evaluator,
    which would need the model.
    """
    if settings.evaluator:
        raise InvalidRequest(
            "an evaluator scores a model, and with --engine none there is none here: leave one out",
            param="evaluator",
        )
    config = settings.update_config()
    permissions.make_folder(settings.data_dir)
    name = settings.served_model_name or settings.model
    with Ledger.open(config.url, blob_url=config.blob_url) as ledger:
        return name, StateEngine(ledger.history(name).weights("head"))
