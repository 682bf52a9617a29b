"""How networks run in this process, and the few sessions that stay warm in it."""

import logging
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from inference_service.contract.manifest import Manifest
from inference_service.core.errors import ConfigurationError
from inference_service.core.execution import CPU, GPUS, OPENVINO, GpuOptions, Precision
from inference_service.core.host import has_bfloat16
from inference_service.engine.model_registry import Model, check_signature
from inference_service.engine.runtime_errors import shortage_or_failure
from inference_service.engine.session import NO_GPU_OPTIONS, Session

logger = logging.getLogger(__name__)

# Loaded networks that a process keeps between jobs: the least recently used one goes when another is loaded.
_WARM_SESSIONS = 2


@dataclass(frozen=True)
class Engine:
    """How networks run in this process.

    Attributes:
        providers: Execution providers, best first; what the settings call effective.
        threads: Threads of a job, those of its session and those of everything else.
        strict: Whether a model that does not run on all of the providers is refused, rather than warned of.
        precision: What networks compute in where their manifest, provider and CPU allow it.
        batch: Windows that a network is given at a time, where its own batch dimension is free.
        jobs: How many jobs share this machine's memory.
        gpu: What NVIDIA's GPUs are told.
    """

    providers: tuple[str, ...]
    threads: int = 1
    strict: bool = False
    precision: Precision = "fp32"
    batch: int = 1
    jobs: int = 1
    gpu: GpuOptions = NO_GPU_OPTIONS

    def on_cpu(self) -> "Engine":
        """The same without its GPUs."""
        return replace(self, providers=(CPU,), strict=False)


@lru_cache(maxsize=_WARM_SESSIONS)
def load_session(model: Model, engine: Engine) -> Session:
    """Loads a model, or takes its session from memory where it is still warm.

    Raises:
        ModelInvalid: Its sha256, inputs or outputs are not what its manifest says.
        ConfigurationError: The engine is strict, and the model does not run on all of its providers.
        OutOfMemory: There is not enough memory for it.
        GpuError: The GPU has not enough memory for it, or failed.
    """
    precision = engine.precision if not _why_not(engine.precision, model.manifest, engine) else "fp32"
    network = model.read_network()
    # Jobs that share their machine must not burn one another's cores.
    open_session = partial(
        Session, network, providers=engine.providers, threads=engine.threads, spin=engine.jobs == 1, gpu=engine.gpu
    )
    session = open_session(precision=precision)
    if precision != "fp32" and not session.whole:
        # What runs elsewhere runs in fp32: a mixture is not what anybody has verified.
        session = open_session()
    if engine.providers[0] in GPUS and session.refusal is not None:
        # The GPU was usable when this worker started. A session on the CPU would stay warm beside one that is again.
        failure = shortage_or_failure(session.refusal, what="the model", on_gpu=True)
        if failure is not None:
            raise failure from RuntimeError(session.refusal)
    check_signature(model.manifest, session.input_shapes, session.output_shapes)
    if engine.strict and (unused := _unused_providers(engine, session)):
        raise ConfigurationError(f"REQUIRE_GPU is set, and model {model.manifest.name} does not run on {unused[0]}")
    for warning in session_warnings(model, engine, session):
        logger.warning("model %s: %s", model.manifest.name, warning)
    return session


def _unused_providers(engine: Engine, session: Session) -> list[str]:
    """Where the first provider has all of a network, the others are not needed."""
    return [] if session.whole else [provider for provider in engine.providers if provider not in session.providers]


def _why_not(precision: Precision, manifest: Manifest, engine: Engine) -> str | None:
    """Why a network is not computed in a precision other than fp32; None where it is."""
    if precision == "fp32":
        return None
    if precision not in manifest.precisions:
        return "its manifest does not allow it"
    if engine.providers[0] != OPENVINO:
        return f"{engine.providers[0]} does not compute in it; {OPENVINO} does"
    return None if has_bfloat16() else "this CPU does not compute in it"


def session_warnings(model: Model, engine: Engine, session: Session) -> list[str]:
    """What about a model's session is not as its worker's settings ask for, in words."""
    unused = _unused_providers(engine, session)
    warnings = [f"it does not run on {provider}" for provider in unused]
    if not unused and not session.whole:
        warnings.append(f"a part of it does not run on {engine.providers[0]}")
    if session.precision != engine.precision:
        reason = _why_not(engine.precision, model.manifest, engine) or "not all of it runs where that is computed"
        warnings.append(f"it runs in fp32, not in {engine.precision}: {reason}")
    return warnings
