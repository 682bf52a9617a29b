"""Which ONNX Runtime execution providers really work here.

ONNX Runtime falls back to the CPU silently where a provider's libraries are missing or its options are wrong, so none
is believed before a session shows it: `trial` does that, in a process of its own. Nothing here needs ONNX Runtime.
"""

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from inference_service.core.errors import ConfigurationError
from inference_service.core.execution import CPU

logger = logging.getLogger(__name__)

# Begins the lines of the trial that are results: libraries print what they like.
RESULT_MARK = "provider-trial "

_PROBE_TIMEOUT_S = 120


@dataclass(frozen=True)
class Probe:
    """What one provider's trial showed.

    Attributes:
        provider: The execution provider.
        reason: Why it cannot be used; None where it can.
    """

    provider: str
    reason: str | None


@cache
def probe_providers() -> tuple[Probe, ...]:
    """Tries every provider of the installed ONNX Runtime, once per process, in a short-lived subprocess.

    The subprocess keeps CUDA out of a worker's parent, which must not touch it before it forks, and survives a provider
    that crashes: those tried before it count.

    Raises:
        ConfigurationError: No provider could be tried at all.
    """
    command = [sys.executable, "-m", "inference_service.engine.provider_probe"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigurationError(f"the trial of the ONNX providers did not end within {_PROBE_TIMEOUT_S} s") from None
    results = [line.removeprefix(RESULT_MARK) for line in process.stdout.splitlines() if line.startswith(RESULT_MARK)]
    probes = [Probe(**json.loads(result)) for result in results]
    if not probes:
        raise ConfigurationError("no ONNX Runtime works here: install one with pip install 'inference-service[cpu]'")
    if process.returncode != 0:
        logger.warning("the trial of the ONNX providers ended with status %d", process.returncode)
        logger.debug("the trial's last words: %s", process.stderr[-2000:])
    return tuple(probes)


def usable_providers() -> list[str]:
    """The providers that a session really runs on here, CPU last."""
    usable = [probe.provider for probe in probe_providers() if probe.reason is None]
    return sorted(usable, key=lambda name: name == CPU)


def log_providers(requested: Sequence[str], using: Sequence[str]) -> None:
    """Logs the three lines that operators look for, and a warning for each requested provider that is not usable."""
    logger.info("ONNX providers requested: %s", list(requested))
    logger.info("ONNX providers available: %s", usable_providers())
    logger.info("ONNX providers using: %s", list(using))
    reasons = {probe.provider: probe.reason for probe in probe_providers()}
    for name in requested:
        if name not in using:
            reason = reasons.get(name, "the installed ONNX Runtime does not have it, or its trial crashed")
            logger.warning("ONNX provider %s is requested but not usable here: %s", name, reason)
