"""All targets, by name."""

from collections.abc import Mapping

from fuzz import archives, codestreams, messages, models, redis_keys, scans
from fuzz.target import Target

_ALL = (
    *scans.TARGETS,
    *archives.TARGETS,
    *codestreams.TARGETS,
    *messages.TARGETS,
    *redis_keys.TARGETS,
    *models.TARGETS,
)
TARGETS: Mapping[str, Target] = {target.name: target for target in _ALL}
