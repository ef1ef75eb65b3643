"""Signed versions: what OpenSSF's model-signing verifies, as one archive, and the key for it."""

import tempfile
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import Response
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from weightledger import DynamicModelManager
from weightledger.api.rest.declared import Declared
from weightledger.api.rest.documentation import TEXT_READ_ERRORS
from weightledger.api.rest.writers import require_writer
from weightledger.ledger.audit.notary import Notary
from weightledger.ledger.bundles import signing, statement
from weightledger.ledger.errors import StorageError

_TAR = "application/octet-stream"
_PEM = "text/plain"
_ARCHIVE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A tar archive of one folder: safetensors files, an index and `model.sig`",
        "content": {_TAR: {"schema": {"type": "string", "format": "binary"}}},
    }
}
_KEY: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A public key of P-256, in PEM",
        "content": {
            _PEM: {
                "schema": {"type": "string"},
                "example": "-----BEGIN PUBLIC KEY-----\nMFkwEwYH…\n-----END PUBLIC KEY-----\n",
            }
        },
    }
}


class _Pem(Response):
    media_type = _PEM


def router(manager: DynamicModelManager, notary: Notary) -> Declared:
    """`GET /v1/models/versions/{id}/signed` and `/v1/models/signing_key`."""
    routes = Declared(prefix="/v1/models", tags=["audit"])
    history = manager.log.history

    def key() -> ec.EllipticCurvePrivateKey:
        require_writer(manager)
        return statement.key_from_seed(notary.signer.seed())

    @routes.get(
        "/versions/{version_id}/signed",
        response_class=FileResponse,
        responses=_ARCHIVE | TEXT_READ_ERRORS,
    )
    def get_signed(version_id: str) -> FileResponse:
        """The weights of a version, or of any other position, signed: a tar archive.

        It holds one folder, `signed`, which OpenSSF's `model_signing verify key` takes with the key
        of `GET /v1/models/signing_key`.
        """
        used = key()
        try:
            folder = tempfile.TemporaryDirectory(dir=manager.config.backup_dir)
        except OSError as error:
            raise StorageError(f"cannot write the weights: {error}") from error
        file = Path(folder.name) / "signed.tar"
        try:
            facts = signing.archive(history, version_id, file, used).facts
        except BaseException:
            folder.cleanup()
            raise
        headers = {
            "x-weights-model": facts["model"].encode("unicode_escape").decode(),
            "x-weights-seq": facts["seq"],
            "x-weights-digest": facts["digest"],
        }
        return FileResponse(
            file, media_type=_TAR, headers=headers, background=BackgroundTask(folder.cleanup)
        )

    @routes.get("/signing_key", response_class=_Pem, responses=_KEY | TEXT_READ_ERRORS)
    def get_signing_key() -> Response:
        """The public key that signed versions are verified with, in PEM.

        What is asked for over the same connection as the archive proves nothing to who does not
        trust this server: compare it with one that was handed over another way.
        """
        return _Pem(statement.public_pem(key()))

    return routes
