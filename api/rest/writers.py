"""What only the server does that writes the log."""

from weightledger import DynamicModelManager
from weightledger.ledger.errors import OperationDisabled


def require_writer(manager: DynamicModelManager) -> None:
    """OperationDisabled on a replica: the log's key is its writer's."""
    if manager.follower is not None:
        raise OperationDisabled("checkpoints are signed where the log is written, not by a replica")
