"""Loads a model's network as the execution options ask for, and keeps recently used sessions loaded."""

import logging
from collections.abc import Callable
from functools import lru_cache, partial

from inference_service.contract.manifest import Manifest
from inference_service.core.errors import ConfigurationError
from inference_service.core.execution import GPU_PROVIDERS, OPENVINO, ExecutionOptions, Precision
from inference_service.core.host import has_bfloat16
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.engine.model_registry import Model, check_signature
from inference_service.engine.runtime_errors import memory_or_gpu_error
from inference_service.engine.session import Session

logger = logging.getLogger(__name__)


class SessionCache:
    """The networks that one process keeps loaded between jobs; the least recently used one is dropped first.

    Args:
        max_sessions: Number of sessions that are kept.
    """

    def __init__(self, max_sessions: int = 2) -> None:
        self._load: Callable[[Model, ExecutionOptions], Session] = lru_cache(maxsize=max_sessions)(load_session)

    def load(self, model: Model, execution: ExecutionOptions) -> Session:
        """Returns the loaded network of a model; raises the errors of `load_session`."""
        return self._load(model, execution)


def load_session(model: Model, execution: ExecutionOptions) -> Session:
    """Loads the network of a model and checks that it runs as the execution options ask for.

    Raises:
        ModelInvalid: The network's sha256, inputs or outputs differ from the manifest.
        ConfigurationError: The options are strict, and the model does not run on all of the providers.
        OutOfMemory: There is not enough memory for the network.
        GpuError: The GPU has not enough memory for the network, or failed.
    """
    session = _open_session(model, execution)
    _check_gpu(session, execution)
    check_signature(model.manifest, session.input_shapes, session.output_shapes)
    name = model.manifest.name
    if execution.strict and (unused := _unused_providers(execution, session)):
        raise ConfigurationError(f"REQUIRE_GPU is set, and model {name} does not run on {unused[0]}")
    for warning in session_warnings(model, execution, session):
        logger.warning("model %s: %s", name, warning.message)
    return session


def expected_precision(model: Model, execution: ExecutionOptions) -> Precision:
    """The precision of a model's network, known before it is loaded; fp32 if a part runs on another provider."""
    return "fp32" if _precision_obstacle(execution, model.manifest) else execution.precision


def session_warnings(model: Model, execution: ExecutionOptions, session: Session) -> list[ReportWarning]:
    """Describes where a session differs from the execution options of its worker."""
    unused = _unused_providers(execution, session)
    warnings = [
        ReportWarning(WarningCode.PROVIDER_UNUSED, f"the model does not run on {provider}") for provider in unused
    ]
    if not unused and not session.single_provider:
        message = f"a part of the model does not run on {execution.providers[0]}"
        warnings.append(ReportWarning(WarningCode.PROVIDER_PARTLY_USED, message))
    if session.precision != execution.precision:
        reason = _precision_obstacle(execution, model.manifest) or "a part of it runs on another provider"
        message = f"the model runs in fp32, not in {execution.precision}: {reason}"
        warnings.append(ReportWarning(WarningCode.PRECISION_FALLBACK, message))
    return warnings


def _open_session(model: Model, execution: ExecutionOptions) -> Session:
    open_session = partial(
        Session,
        model.read_network(),
        providers=execution.providers,
        threads=execution.threads,
        # Spinning threads would take CPU time from the jobs that share the machine.
        spin=execution.concurrency == 1,
        gpu=execution.gpu,
    )
    precision = expected_precision(model, execution)
    session = open_session(precision=precision)
    if precision != "fp32" and not session.single_provider:
        # The other providers compute in fp32, and a network in two precisions has not been verified.
        session = open_session()
    return session


def _check_gpu(session: Session, execution: ExecutionOptions) -> None:
    """Raises the GPU's error where ONNX Runtime fell back to the CPU because of it.

    The GPU was usable when the worker started and may soon be usable again; a cached CPU session would hide that.
    """
    if execution.providers[0] not in GPU_PROVIDERS or session.fallback_reason is None:
        return
    error = memory_or_gpu_error(session.fallback_reason, subject="the model", on_gpu=True)
    if error is not None:
        raise error from RuntimeError(session.fallback_reason)


def _unused_providers(execution: ExecutionOptions, session: Session) -> list[str]:
    """Lists the providers that a session does not use; none where the first one runs the whole network."""
    if session.single_provider:
        return []
    return [provider for provider in execution.providers if provider not in session.providers]


def _precision_obstacle(execution: ExecutionOptions, manifest: Manifest) -> str | None:
    """Returns the reason why a network runs in fp32 instead of the precision asked for; None where there is none."""
    if execution.precision == "fp32":
        return None
    if execution.precision not in manifest.precisions:
        return "its manifest does not allow it"
    if execution.providers[0] != OPENVINO:
        return f"{execution.providers[0]} does not support it; {OPENVINO} does"
    return None if has_bfloat16() else "this CPU does not support it"
