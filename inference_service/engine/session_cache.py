"""Loads a model's networks as the execution options ask for, and keeps recently used ones loaded."""

import logging
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache, partial

from inference_service.contract.manifest import Manifest
from inference_service.contract.part import NetworkFile
from inference_service.core.errors import ConfigurationError
from inference_service.core.execution import GPU_PROVIDERS, OPENVINO, ExecutionOptions, Precision
from inference_service.core.host import has_bfloat16
from inference_service.core.report_warnings import ReportWarning, WarningCode
from inference_service.engine.model_registry import Model
from inference_service.engine.runtime_errors import memory_or_gpu_error
from inference_service.engine.session import Session
from inference_service.engine.signature import check_signature

logger = logging.getLogger(__name__)


class LoadedModel:
    """The networks of a model, ready to run.

    Args:
        model: The model.
        execution: The options that they were loaded with.
        sessions: The session of each network, by file.
    """

    def __init__(self, model: Model, execution: ExecutionOptions, sessions: Mapping[str, Session]) -> None:
        self.manifest = model.manifest
        self.sessions = sessions
        self._execution = execution

    @property
    def providers(self) -> list[str]:
        """The execution providers in use by any of the networks, best first."""
        used = {provider for session in self.sessions.values() for provider in session.providers}
        return [*filter(used.__contains__, self._execution.providers)]

    @property
    def precision(self) -> Precision:
        """The precision of the networks; fp32 if one of them runs in it."""
        precisions = {session.precision for session in self.sessions.values()}
        return "fp32" if "fp32" in precisions else precisions.pop()

    @property
    def single_provider(self) -> bool:
        """True if the first provider runs the whole of every network."""
        return all(session.single_provider for session in self.sessions.values())

    @property
    def warnings(self) -> list[ReportWarning]:
        """Describes where the sessions differ from the execution options of their worker."""
        unused = _unused_providers(self._execution, self.sessions.values())
        warnings = [
            ReportWarning(WarningCode.PROVIDER_UNUSED, f"the model does not run on {provider}") for provider in unused
        ]
        if not unused and not self.single_provider:
            message = f"a part of the model does not run on {self._execution.providers[0]}"
            warnings.append(ReportWarning(WarningCode.PROVIDER_PARTLY_USED, message))
        if self.precision != self._execution.precision:
            reason = _precision_obstacle(self._execution, self.manifest) or "a part of it runs on another provider"
            message = f"the model runs in fp32, not in {self._execution.precision}: {reason}"
            warnings.append(ReportWarning(WarningCode.PRECISION_FALLBACK, message))
        return warnings


class SessionCache:
    """The models that one process keeps loaded between jobs; the least recently used one is dropped first.

    Args:
        max_models: Number of models that are kept.
    """

    def __init__(self, max_models: int = 2) -> None:
        self._load: Callable[[Model, ExecutionOptions], LoadedModel] = lru_cache(maxsize=max_models)(load_model)

    def load(self, model: Model, execution: ExecutionOptions) -> LoadedModel:
        """Returns the loaded networks of a model; raises the errors of `load_model`."""
        return self._load(model, execution)


def load_model(model: Model, execution: ExecutionOptions) -> LoadedModel:
    """Loads the networks of a model and checks that they run as the execution options ask for.

    Raises:
        ModelInvalid: A network's sha256, inputs or outputs differ from the manifest.
        ConfigurationError: The options are strict, and a network does not run on all of the providers.
        OutOfMemory: There is not enough memory for the networks.
        GpuError: The GPU has not enough memory for a network, or failed.
    """
    sessions: dict[str, Session] = {}
    for part in model.manifest.every_part:
        for network in part.networks:
            if network.file not in sessions:
                sessions[network.file] = _open_session(model, network, execution)
                _check_gpu(sessions[network.file], execution)
            session = sessions[network.file]
            check_signature(model.title, part, session.input_shapes, session.output_shape)
            if len(model.manifest.every_part) > 1:
                # Parts run one after the other: each is loaded when it runs.
                session.unload()
    name = model.manifest.name
    if execution.strict and (unused := _unused_providers(execution, sessions.values())):
        raise ConfigurationError(f"REQUIRE_GPU is set, and model {name} does not run on {unused[0]}")
    loaded = LoadedModel(model, execution, sessions)
    for warning in loaded.warnings:
        logger.warning("model %s: %s", name, warning.message)
    return loaded


def expected_precision(model: Model, execution: ExecutionOptions) -> Precision:
    """The precision of a model's networks, known before they are loaded; fp32 if a part runs on another provider."""
    return "fp32" if _precision_obstacle(execution, model.manifest) else execution.precision


def _open_session(model: Model, network: NetworkFile, execution: ExecutionOptions) -> Session:
    open_session = partial(
        Session,
        model.read_network(network),
        output=network.output,
        providers=execution.providers,
        threads=execution.threads,
        # Spinning threads would take CPU time from the jobs that share the machine.
        spin=execution.concurrency == 1,
        gpu=execution.gpu,
        read_again=partial(model.read_network, network),
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


def _unused_providers(execution: ExecutionOptions, sessions: Collection[Session]) -> list[str]:
    """Lists the providers that a session does not use; none where the first one runs all networks."""
    partly = [session for session in sessions if not session.single_provider]
    return [
        provider for provider in execution.providers if any(provider not in session.providers for session in partly)
    ]


def _precision_obstacle(execution: ExecutionOptions, manifest: Manifest) -> str | None:
    """Returns the reason why a network runs in fp32 instead of the precision asked for; None where there is none."""
    if execution.precision == "fp32":
        return None
    if execution.precision not in manifest.precisions:
        return "its manifest does not allow it"
    if execution.providers[0] != OPENVINO:
        return f"{execution.providers[0]} does not support it; {OPENVINO} does"
    return None if has_bfloat16() else "this CPU does not support it"
