"""Rules of the object storage. It has no fence: it applies every request that ever reaches it, also late and twice."""

from protocol_model.explorer import Step
from protocol_model.protocol import Setting, Steps, title, with_attempt, with_history
from protocol_model.state import Key, Request, World


def storage_applies(setting: Setting, world: World) -> Steps:
    """The storage applies a request, now or once more."""
    for request in world.requests:
        if request.content is None:
            yield from _delete(world, request)
        else:
            yield from _put(world, request)


def _put(world: World, request: Request) -> Steps:
    content = request.content
    assert content is not None
    others = frozenset(item for item in world.objects if item[0] != request.key)
    stored = world._replace(objects=others | {(request.key, content)})
    if world.attempts[content.job][content.attempt - 1].step == "sent":
        stored = with_attempt(stored, content.job, content.attempt, step="stored", work=None)
    if stored != world:
        yield Step(f"the storage applies the PUT of {title(content.job, content.attempt)}", stored)


def _delete(world: World, request: Request) -> Steps:
    removed = frozenset(item for item in world.objects if _is_below(item[0], request.key))
    if removed:
        after = world._replace(objects=world.objects - removed)
        for job in {content.job for _, content in removed} - {request.job}:
            after = with_history(after, job, removed_by_another=True)
        yield Step(f"the storage applies a DELETE for {title(request.job)} below {request.key}", after)


def _is_below(key: Key, start: Key) -> bool:
    return key[: len(start)] == start
