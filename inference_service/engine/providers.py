"""The ONNX Runtime execution providers that are usable on this machine.

ONNX Runtime falls back to the CPU silently if a provider's libraries are missing or its options are wrong. A provider
counts as usable only after `provider_probe`, a separate process, ran a session on it. No ONNX Runtime is needed here.
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

# Starts the result lines of the probe; the providers' libraries may print other lines.
RESULT_PREFIX = "provider-probe "

PROBE_LIMIT_S = 120.0
"""Time limit of the probe of all providers: the first use of a GPU may take a minute."""
_MAX_LOGGED_CHARACTERS = 2000


@dataclass(frozen=True)
class ProbeResult:
    """The result of probing one provider.

    Attributes:
        provider: The execution provider.
        reason: Why the provider is not usable; None if it is usable.
    """

    provider: str
    reason: str | None


def run_probe() -> tuple[ProbeResult, ...]:
    """Probes every provider of the installed ONNX Runtime in a short-lived subprocess.

    A worker's parent process must not initialise CUDA before it forks, hence the subprocess. If a provider crashes
    the subprocess, the results of the providers probed before are kept.

    Raises:
        ConfigurationError: No provider could be probed.
    """
    command = [sys.executable, "-P", "-m", "inference_service.engine.provider_probe"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise ConfigurationError(
            f"the probe of the ONNX providers did not end within {PROBE_LIMIT_S:g} s: check that nvidia-smi answers "
            "and that this machine is not overloaded, then start again"
        ) from None
    lines = process.stdout.splitlines()
    results = [json.loads(line.removeprefix(RESULT_PREFIX)) for line in lines if line.startswith(RESULT_PREFIX)]
    if not results:
        raise ConfigurationError("no ONNX Runtime works here: install one with pip install 'inference-service[cpu]'")
    if process.returncode != 0:
        logger.warning("the probe of the ONNX providers ended with status %d", process.returncode)
        logger.debug("end of the probe's output: %s", process.stderr[-_MAX_LOGGED_CHARACTERS:])
    return tuple(ProbeResult(**result) for result in results)


@cache
def probe_providers() -> tuple[ProbeResult, ...]:
    """Returns the results of `run_probe`, which runs once per process."""
    return run_probe()


def usable_providers() -> list[str]:
    """Lists the usable providers, the CPU last."""
    usable = [result.provider for result in probe_providers() if result.reason is None]
    return sorted(usable, key=lambda name: name == CPU)


def log_providers(requested: Sequence[str], using: Sequence[str]) -> None:
    """Logs the three lines that operators search for, and a warning for each requested provider that is not usable."""
    logger.info("ONNX providers requested: %s", list(requested))
    logger.info("ONNX providers available: %s", usable_providers())
    logger.info("ONNX providers using: %s", list(using))
    reasons = {result.provider: result.reason for result in probe_providers()}
    for name in requested:
        if name not in using:
            reason = reasons.get(name, "the installed ONNX Runtime does not include it, or its probe crashed")
            logger.warning("ONNX provider %s is requested but not usable here: %s", name, reason)
