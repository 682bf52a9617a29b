"""The parts that the calls of the gateway share, and the parameters by which a call gets them."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

import anyio
from fastapi import Depends, Request

from inference_service.client import Client
from inference_service.core.settings import Settings
from inference_service.gateway.access import Access, Caller
from inference_service.gateway.events import EventHub
from inference_service.gateway.health import HealthCheck
from inference_service.gateway.submission.uploading import UploadSlots
from inference_service.jobs.database import Database
from inference_service.jobs.gateway.tokens import TokenRole
from inference_service.jobs.storage.object_storage import Storage


@dataclass(frozen=True)
class Gateway:
    """The parts of one process of the gateway."""

    settings: Settings
    deployment_id: UUID
    client: Client
    database: Database
    storage: Storage
    access: Access
    events: EventHub
    health: HealthCheck
    uploads: UploadSlots
    downloads: anyio.CapacityLimiter
    submits: anyio.CapacityLimiter
    tables: anyio.CapacityLimiter


async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


InGateway = Annotated[Gateway, Depends(_gateway)]
"""The gateway, as a parameter of a call."""


def _reader(request: Request, gateway: InGateway) -> Caller:
    caller = gateway.access.caller(request)
    request.state.caller = caller.name
    return caller


Reader = Annotated[Caller, Depends(_reader)]
"""The caller of a call that anyone with a token may make."""


def _submitter(caller: Reader) -> Caller:
    caller.require(TokenRole.SUBMIT)
    return caller


Submitter = Annotated[Caller, Depends(_submitter)]
"""The caller of a call that needs the role submit."""
