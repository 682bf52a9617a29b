"""The sessions of a loaded model as the networks of a sliding window."""

from inference_service.contract.part import Part
from inference_service.engine.session import Session
from inference_service.engine.session_cache import LoadedModel
from inference_service.engine.signature import plane_axis
from inference_service.segmentation.windows.device_aggregator import DeviceSession
from inference_service.segmentation.windows.network import Batching, LoadedNetwork, PlaneNetwork


def loaded_networks(model: LoadedModel, batch_size: int) -> dict[str, LoadedNetwork]:
    """Returns the networks of a model by file.

    The batch size follows each network. On a GPU, the next batch runs while the last one is aggregated.

    Args:
        model: The loaded model.
        batch_size: Windows in each run, where the model's own batch dimension is free.
    """
    return {
        network.file: _loaded_network(model.sessions[network.file], part, batch_size)
        for part in model.manifest.every_part
        for network in part.networks
    }


def _loaded_network(session: Session, part: Part, batch_size: int) -> LoadedNetwork:
    fixed = session.fixed_batch_size
    batching = Batching(fixed or batch_size, may_shrink=fixed is None, run_ahead=session.on_gpu)
    axis = plane_axis(part, session.input_shapes[0])
    if axis is not None:
        return LoadedNetwork(PlaneNetwork(session, axis), batching, session.load, session.unload)
    network = DeviceSession(session) if session.aggregates_on_device else session
    return LoadedNetwork(network, batching, session.load, session.unload)
