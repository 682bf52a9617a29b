"""Removes uploads that no job uses."""

import logging

from inference_service.core.errors import StorageUnavailable
from inference_service.jobs.database import Database
from inference_service.jobs.gateway import uploads
from inference_service.jobs.storage.object_storage import Storage, is_outage

logger = logging.getLogger(__name__)


def sweep_uploads(database: Database, storage: Storage) -> None:
    """Removes the objects of uploads that became no job. Any number of processes may do so at a time.

    Raises:
        DatabaseUnavailable: Postgres does not answer.
        StorageUnavailable: The object storage does not answer. What is left is removed by a later call.
    """
    while (upload := uploads.take_unused(database)) is not None:
        try:
            for found in storage.list_objects(upload.bucket, upload.prefix):
                storage.remove(upload.bucket, found.key)
        except StorageUnavailable as error:
            if is_outage(error):
                raise
            logger.warning("upload %s not removed: %s", upload.id, error)
        else:
            uploads.mark_removed(database, upload)
    uploads.forget_counted(database)
