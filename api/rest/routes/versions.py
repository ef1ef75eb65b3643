"""One version, and the weights of a state."""

import tempfile
from pathlib import Path
from typing import Any

from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from weightledger import DynamicModelManager
from weightledger.api.items import version_item
from weightledger.api.rest.answers.versions import VersionDetails
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import TEXT_READ_ERRORS, answers
from weightledger.ledger.debug import replaying
from weightledger.ledger.errors import StorageError

_FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A safetensors file",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def router(manager: DynamicModelManager) -> Declared:
    """`GET /v1/models/versions/{id}` and `/versions/{id}/weights`."""
    routes = Declared(prefix="/v1/models/versions", tags=["versions"])
    history = manager.log.history

    @routes.get("/{version_id}", responses=answers(VersionDetails))
    def get_version(version_id: str) -> dict[str, Any]:
        """One listed version, by any name it has."""
        return version_item(history.version(version_id))

    @routes.get(
        "/{version_id}/weights", response_class=FileResponse, responses=_FILE | TEXT_READ_ERRORS
    )
    def get_weights(version_id: str) -> FileResponse:
        """The tensors of a version, or of any other position, as safetensors."""
        try:
            folder = tempfile.TemporaryDirectory(dir=manager.config.backup_dir)
        except OSError as error:
            raise StorageError(f"cannot write the weights: {error}") from error
        file = Path(folder.name) / "weights.safetensors"
        try:
            facts = replaying.save(history, replaying.StateRequest(version_id), file)
        except BaseException:
            folder.cleanup()
            raise
        headers = {
            "x-weights-model": facts["model"].encode("unicode_escape").decode(),
            "x-weights-seq": str(facts["seq"]),
            "x-weights-digest": facts["digest"],
        }
        return FileResponse(
            file,
            media_type="application/octet-stream",
            headers=headers,
            background=BackgroundTask(folder.cleanup),
        )

    return routes
