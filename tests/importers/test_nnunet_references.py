"""Networks that nnU-Net has trained, compared with its own predictions of test scans, which a cache keeps."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from references.cache import Prediction, Reference, cache_folder, read_index

from inference_service.contract.part import Part
from inference_service.core.errors import ModelInvalid
from inference_service.core.execution import CPU, ExecutionOptions
from inference_service.engine.model_registry import read_model
from inference_service.engine.session_cache import load_model
from inference_service.formats.nifti import read_nifti
from inference_service.formats.read_limits import ReadLimits
from inference_service.imaging.geometry import Volume
from inference_service.importers.model_import import Imported
from inference_service.segmentation.labels.postprocessing import postprocess
from inference_service.segmentation.loaded_networks import loaded_networks
from inference_service.segmentation.volume_segmentation import segment_volume

Import = Callable[..., Imported]
Mask = NDArray[np.unsignedinteger]
Chosen = TypeVar("Chosen", bound=Part)
# Labels of scans of which nnU-Net's sums in half precision decide more than a thousandth: they have few voxels, or lie
# where the weights of the only window are subnormal.
_DECIDED_BY_HALF = {("PelvisMR", "3d_fullres", "cubes"), ("AbdomenCT", "3d_fullres", "thick-slices")}
_LIMITS = ReadLimits(2**30, 2**30)
_SLOW = pytest.mark.slow


def find_reference(data_set: str, configuration: str) -> Reference:
    for reference in read_index(data_set):
        if reference.configuration == configuration:
            return reference
    pytest.skip(f"no reference {data_set} in {cache_folder()}: make references")


def read(path: str) -> Volume:
    return read_nifti(cache_folder() / path, _LIMITS).volume


class Own:
    """An imported model with its networks."""

    def __init__(self, imported: Imported) -> None:
        loaded = load_model(read_model(imported.folder), ExecutionOptions((CPU,), 2))
        self.manifest = loaded.manifest
        self.networks = loaded_networks(loaded, 1)

    def segment(self, prediction: Prediction) -> Mask:
        """Segments the scan of a prediction in the same way, without postprocessing."""
        manifest = _as_predicted(self.manifest, prediction).model_copy(update={"postprocessing": ()})
        volumes = [read(image) for image in prediction.images]
        return segment_volume(volumes, manifest, self.networks, max_voxels=2**30).mask


def _as_predicted(part: Chosen, prediction: Prediction) -> Chosen:
    """The part with the mirroring of a prediction."""
    if prediction.mirroring:
        return part
    first = part.first_stage
    return part.model_copy(
        update={"mirror_axes": (), "first_stage": None if first is None else _as_predicted(first, prediction)}
    )


def check_labels(own: Mask, prediction: Prediction, *, dice: float) -> None:
    """Checks that the labels are nnU-Net's: all but a few voxels where it adds up in half precision."""
    theirs = read(prediction.labels).voxels
    assert theirs.max() >= 2
    # In single precision one voxel of 280 000 differs: a label of a first stage that lies in the middle of two.
    assert np.mean(own != theirs) <= (1e-4 if prediction.half_sums else 1e-5)
    for value in set(np.unique(theirs)) - {0}:
        both = np.count_nonzero((own == value) & (theirs == value))
        assert 2 * both >= dice * (np.count_nonzero(own == value) + np.count_nonzero(theirs == value))


@pytest.mark.parametrize(
    ("data_set", "configuration"),
    [
        pytest.param("AbdomenCT", "3d_fullres", marks=_SLOW),
        pytest.param("HeadMR", "3d_fullres", marks=_SLOW),
        ("PelvisMR", "3d_fullres"),
        pytest.param("PelvisMR", "2d", marks=_SLOW),
        pytest.param("CascadeCT", "3d_lowres", marks=_SLOW),
        pytest.param("CascadeCT", "3d_cascade_fullres", marks=_SLOW),
    ],
)
@pytest.mark.timeout(900)
def test_labels_are_those_of_nnunet(data_set: str, configuration: str, run_import: Import) -> None:
    reference = find_reference(data_set, configuration)
    models: dict[tuple[str, ...], Own] = {}
    masks: dict[tuple[str, str], Mask] = {}
    for prediction in reference.predictions:
        kind = prediction.checkpoint.removeprefix("checkpoint_").removesuffix(".pth")
        folds = tuple(map(str, prediction.folds))
        if (kind, *folds) not in models:
            source = cache_folder() / reference.folder
            name = "-".join((kind, *folds))
            models[kind, *folds] = Own(run_import(source, name=name, folds=folds, checkpoint=kind))
        own = models[kind, *folds]
        mask = own.segment(prediction)
        masks[prediction.variant, prediction.scan] = mask
        decided = prediction.half_sums and (data_set, configuration, prediction.scan) in _DECIDED_BY_HALF
        check_labels(mask, prediction, dice=0.997 if decided else 0.999 if prediction.half_sums else 0.9999)
        if prediction.postprocessed and own.manifest.postprocessing:
            cleaned = mask.copy()
            postprocess(cleaned, own.manifest.postprocessing, voxel_volume_ml=1)
            assert np.mean(cleaned != read(prediction.postprocessed).voxels) <= 1e-4
    _check_explanations(reference, masks)


def _check_explanations(reference: Reference, masks: Mapping[tuple[str, str], Mask]) -> None:
    """Where a label agrees less, nnU-Net's half precision decides: in single precision it has exactly our labels."""
    by_name = {(each.variant, each.scan): each for each in reference.predictions}
    for data_set, configuration, scan in _DECIDED_BY_HALF:
        if (data_set, configuration) == (reference.data_set, reference.configuration):
            assert np.array_equal(masks["plain", scan], read(by_name["single", scan].labels).voxels)
            half = masks["plain", scan] != read(by_name["plain", scan].labels).voxels
            assert 0 < np.count_nonzero(half) <= 16
            # The mean over mirrored windows is decided by half precision at fewer voxels.
            mirrored = masks["default", scan] != read(by_name["default", scan].labels).voxels
            assert np.count_nonzero(mirrored) < np.count_nonzero(half)


@pytest.mark.slow
def test_plans_of_the_older_format(run_import: Import) -> None:
    reference = find_reference("AbdomenCT", "3d_fullres")
    assert reference.old_folder is not None
    imported = run_import(cache_folder() / reference.old_folder)
    assert any("UNet_class_name" in taken.where for taken in imported.model.taken)
    own = Own(imported)
    for prediction in reference.predictions:
        if prediction.variant == "first":
            check_labels(own.segment(prediction), prediction, dice=0.999)


@pytest.mark.slow
def test_the_zip_is_the_folder(run_import: Import) -> None:
    reference = find_reference("PelvisMR", "2d")
    packed = run_import(cache_folder() / reference.archive, name="packed")
    folder = run_import(cache_folder() / reference.folder, name="folder")
    assert packed.model.manifest == folder.model.manifest
    assert [each.sha256 for each in packed.networks] == [each.sha256 for each in folder.networks]
    # nnU-Net chose the other configuration, which the zip of this one does not hold.
    assert "nnU-Net's choice was" in packed.model.assumed[0]


@pytest.mark.slow
def test_the_choice_of_nnunet(run_import: Import) -> None:
    chosen = run_import(cache_folder() / find_reference("PelvisMR", "2d").folder / "..")
    assert chosen.manifest.window == (10, 48, 56)
    assert [step.labels for step in chosen.manifest.postprocessing] == [(1, 2)]
    cascade = find_reference("CascadeCT", "3d_cascade_fullres")
    with pytest.raises(ModelInvalid, match=r"ensemble of .*3d_lowres and .*3d_cascade_fullres"):
        run_import(cache_folder() / cascade.folder / "..", name="other")
