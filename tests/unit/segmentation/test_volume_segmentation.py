"""Models of several parts, networks, stages and channels, and the outputs of their networks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pytest
from fake_networks import NearestValueNetwork, PlaceNetwork, ThresholdNetwork
from numpy.typing import NDArray
from scipy import ndimage, special

from inference_service.contract.manifest import Manifest
from inference_service.contract.part import NETWORK_FILE, Part
from inference_service.core.errors import BadRequest, InputTooLarge, ModelInvalid, OutOfMemory
from inference_service.core.progress import Stage
from inference_service.core.threads import ThreadPool
from inference_service.imaging.geometry import Affine, Shape, Volume
from inference_service.segmentation import part_runs
from inference_service.segmentation.preparation.preprocessing import PreprocessedImage, preprocess
from inference_service.segmentation.resources import Resources, StageMonitor
from inference_service.segmentation.volume_segmentation import VolumeSegmentation, segment_volume
from inference_service.segmentation.windows.network import Batching, LoadedNetwork, Network, PlaneNetwork

MakeManifest = Callable[..., Manifest]
MakeAffine = Callable[[str, Sequence[float]], Affine]
Doubles = NDArray[np.float64]

# In float32, two logits closer than this may be in either order.
TIE = 1e-4
WHOLE = (None, None, None)


def label_scan(shape: Shape) -> NDArray[np.float32]:
    """Labels 0…3 as intensities, without any symmetry."""
    return np.random.default_rng(0).integers(0, 4, shape).astype(np.float32)


def smooth_scan(shape: Shape) -> NDArray[np.float32]:
    """Values from 0 to 3 that change slowly, each as often as the others."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=shape), 1.5)
    ranks = smooth.ravel().argsort().argsort().reshape(shape)
    return np.asarray(3 * ranks / ranks.max(), dtype=np.float32)


def named(file: str) -> dict[str, object]:
    return {"networks": [{"file": file, "sha256": "0" * 64}]}


def outputs(*values: int | None) -> list[dict[str, object]]:
    return [{"channel": channel, "value": value} for channel, value in enumerate(values)]


def segmented(
    volumes: Volume | Sequence[Volume],
    manifest: Manifest,
    networks: Network | Mapping[str, Network],
    resources: Resources | None = None,
) -> VolumeSegmentation:
    loaded = networks if isinstance(networks, Mapping) else {NETWORK_FILE: networks}
    return segment_volume(
        [volumes] if isinstance(volumes, Volume) else volumes,
        manifest,
        {file: LoadedNetwork(network) for file, network in loaded.items()},
        max_voxels=10**6,
        resources=resources,
    )


def segment(
    volumes: Volume | Sequence[Volume], manifest: Manifest, networks: Network | Mapping[str, Network]
) -> NDArray[np.unsignedinteger]:
    return segmented(volumes, manifest, networks).mask


def zoomed(image: NDArray[np.generic], shape: Sequence[int], order: Literal[0, 1] = 1) -> Doubles:
    ratios = np.array(shape) / image.shape
    return np.asarray(
        ndimage.zoom(np.asarray(image, dtype=np.float64), ratios, order=order, mode="nearest", grid_mode=True)
    )


def at(spacing_mm: Sequence[float], voxels: NDArray[np.float32]) -> Volume:
    return Volume(voxels, np.diag([*spacing_mm, 1.0]))


@pytest.fixture
def prepared_for(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """The parts that a scan was prepared for."""
    parts: list[Part] = []

    def watched(channels: Sequence[Volume], part: Part, **options: Any) -> PreprocessedImage:
        parts.append(part)
        return preprocess(channels, part, **options)

    monkeypatch.setattr(part_runs, "preprocess", watched)
    return parts


def test_labels_of_later_parts_overwrite_those_of_earlier_ones(
    make_manifest: MakeManifest, prepared_for: list[Part]
) -> None:
    voxels = label_scan((7, 4, 5))
    parts = [
        {**named("first.onnx"), "outputs": outputs(0, 1, 1, 0)},
        {**named("second.onnx"), "outputs": outputs(0, 0, 2, 3)},
    ]
    networks = {file: NearestValueNetwork(0, 1, 2, 3) for file in ("first.onnx", "second.onnx")}
    done: list[float] = []

    def progress(stage: Stage, share: float) -> None:
        if stage == "windows":
            done.append(share)

    resources = Resources(monitor=StageMonitor(progress=progress))
    result = segmented(at((1, 1, 1), voxels), make_manifest(sha256=None, parts=parts), networks, resources)
    assert np.array_equal(result.mask, voxels)
    assert result.windows == sum(len(network.images) for network in networks.values())
    assert done == pytest.approx([(number + 1) / result.windows for number in range(result.windows)])
    # What the parts share is computed once.
    assert len(prepared_for) == 1


def telling(names: list[str], events: list[str], network: Network) -> dict[str, LoadedNetwork]:
    """Networks that record when they are loaded and unloaded."""

    def tell(event: str) -> Callable[[], None]:
        return lambda: events.append(event)

    return {name: LoadedNetwork(network, load=tell(f"load {name}"), unload=tell(f"unload {name}")) for name in names}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["a"], ["load a"]),
        (["a", "b"], ["load a", "unload a", "load b", "unload b"]),
    ],
)
def test_the_memory_of_a_network_is_freed_before_the_next_part(
    make_manifest: MakeManifest, parts: list[str], expected: list[str]
) -> None:
    events: list[str] = []
    networks = telling(parts, events, NearestValueNetwork(0, 1, 2, 3))
    manifest = make_manifest(sha256=None, parts=[named(name) for name in parts])
    segment_volume([at((1, 1, 1), label_scan((7, 4, 5)))], manifest, networks, max_voxels=10**6)
    assert events == expected


def test_the_memory_of_a_network_is_freed_where_its_part_fails(make_manifest: MakeManifest) -> None:
    class Fails(NearestValueNetwork):
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            raise OutOfMemory("too large")

    events: list[str] = []
    networks = telling(["a", "b"], events, Fails(0, 1, 2, 3))
    manifest = make_manifest(sha256=None, parts=[named("a"), named("b")])
    with pytest.raises(OutOfMemory):
        segment_volume([at((1, 1, 1), label_scan((7, 4, 5)))], manifest, networks, max_voxels=10**6)
    assert events == ["load a", "unload a"]


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, 1),
        ({"overlap": 0.25, "activation": "sigmoid", "labels": None}, 1),
        ({"orientation": "LPS"}, 2),
        ({"spacing_mm": (1.5, 1.5, 1.5)}, 2),
        ({"logits_interpolation": "nearest"}, 2),
        # Limits of size depend on it.
        ({"window": (9, 9, 9)}, 2),
    ],
)
def test_parts_share_a_preparation_if_they_agree_on_it(
    make_manifest: MakeManifest, prepared_for: list[Part], change: dict[str, object], count: int
) -> None:
    change = {name: value for name, value in change.items() if value is not None}
    plain = {**named("model.onnx"), "outputs": outputs(1, 2, 3)}
    manifest = make_manifest(sha256=None, parts=[plain, plain | change])
    segment(at((1, 1, 1), label_scan((7, 4, 5))), manifest, NearestValueNetwork(0, 1, 2))
    assert len(prepared_for) == count


def test_parts_may_have_grids_of_their_own(make_manifest: MakeManifest, oblique_affine: MakeAffine) -> None:
    voxels = smooth_scan((9, 8, 10))
    volume = Volume(voxels, oblique_affine("PLI", (1.0, 1.0, 1.0)))
    parts: list[dict[str, object]] = [
        {"spacing_mm": (2, 2, 2), "crop": {"kind": "nonzero"}, "outputs": outputs(0, 1)},
        {"orientation": "SAL", "spacing_mm": (1.5, 1, 0.7), "outputs": outputs(0, 2)},
    ]
    files = ("first.onnx", "second.onnx")
    networks = {"first.onnx": NearestValueNetwork(0, 1.4), "second.onnx": NearestValueNetwork(0, 3)}
    first, second = (
        segment(
            volume,
            make_manifest(sha256=None, parts=[named(file) | part]),
            {file: networks[file]},
        )
        for file, part in zip(files, parts, strict=True)
    )
    manifest = make_manifest(sha256=None, parts=[named(file) | part for file, part in zip(files, parts, strict=True)])
    result = segmented(volume, manifest, networks)
    assert np.array_equal(result.mask, np.where(second == 0, first, second))
    assert set(np.unique(result.mask)) == {0, 1, 2}
    # The whole scan, which the second part has segmented.
    assert [side.stop - side.start for side in result.cropped_to] == list(voxels.shape)


def test_the_limit_of_the_size_holds_for_each_part(make_manifest: MakeManifest) -> None:
    parts = [named("model.onnx"), {**named("model.onnx"), "window": (101, 102, 103)}]
    manifest = make_manifest(sha256=None, parts=parts)
    with pytest.raises(InputTooLarge):
        segment(at((1, 1, 1), label_scan((7, 4, 5))), manifest, NearestValueNetwork(0, 1, 2, 3))


class StageNetwork(NearestValueNetwork):
    """Keeps all channels of its windows."""

    def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        self.images.append(windows[0])
        return np.asarray(-np.abs(windows[:, :1] - self.values))


@pytest.mark.parametrize("coarse_mm", [1.0, 2.2])
@pytest.mark.parametrize("fine_mm", [1.0, 0.8])
def test_labels_of_the_first_stage_are_channels_of_the_second(
    make_manifest: MakeManifest, oblique_affine: MakeAffine, coarse_mm: float, fine_mm: float
) -> None:
    voxels = smooth_scan((10, 12, 9))
    volume = Volume(voxels, oblique_affine("LPS", (1.0, 1.0, 1.0)))
    values = (0, 1, 2, 3)
    coarse = {**named("low.onnx"), "spacing_mm": [coarse_mm] * 3, "orientation": "SAR", "window": (5, 4, 3)}
    first_stage = segment(
        volume, make_manifest(sha256=None, **coarse), {"low.onnx": NearestValueNetwork(0.3, 1, 1.9, 2.8)}
    )
    fine = make_manifest(spacing_mm=[fine_mm] * 3, orientation="LPS", window=WHOLE, first_stage=coarse)
    network = StageNetwork(*values)
    mask = segment(volume, fine, {NETWORK_FILE: network, "low.onnx": NearestValueNetwork(0.3, 1, 1.9, 2.8)})

    grid = tuple(round(size / fine_mm) for size in voxels.shape)
    shares = np.array([zoomed(first_stage == value, grid) for value in values])
    labels = shares.argmax(axis=0)
    # Rounding may decide where two labels have equal shares.
    second, largest = np.sort(shares, axis=0)[-2:]
    sure = largest - second > TIE
    assert sure.mean() > 0.9
    (image,) = network.images
    assert image.shape == (4, *grid)
    assert np.allclose(image[0], zoomed(voxels, grid), atol=1e-5)
    for channel, value in zip(image[1:], (1, 2, 3), strict=True):
        assert np.array_equal(channel[sure], (labels == value)[sure])
        assert set(np.unique(channel)) == {0, 1}
        assert 20 < channel.sum() < channel.size - 20
    # The mask is decided by the second stage.
    plain = make_manifest(spacing_mm=[fine_mm] * 3, orientation="LPS", window=WHOLE)
    assert np.array_equal(mask, segment(volume, plain, NearestValueNetwork(*values)))


def test_channels_of_the_first_stage_are_those_of_the_part_that_runs(make_manifest: MakeManifest) -> None:
    """A part without a first stage does not take the image of one that has it."""
    voxels = label_scan((5, 4, 3))
    stage = {**named("low.onnx"), "outputs": outputs(0, 1)}
    parts = [
        {**named("a.onnx"), "first_stage": stage},
        {**named("b.onnx")},
        {**named("c.onnx"), "first_stage": {**stage, "outputs": outputs(1, 0)}},
    ]
    networks = {file: StageNetwork(0, 1, 2, 3) for file in ("a.onnx", "b.onnx", "c.onnx")}
    manifest = make_manifest(sha256=None, parts=parts)
    segment(at((1, 1, 1), voxels), manifest, {**networks, "low.onnx": NearestValueNetwork(0, 1)})
    (first,), (second,), (third,) = (network.images for network in networks.values())
    assert np.array_equal(first, [voxels, voxels >= 1])
    assert np.array_equal(second, [voxels])
    assert np.array_equal(third, [voxels, voxels < 1])


def test_outputs_map_channels_to_values(make_manifest: MakeManifest) -> None:
    voxels = label_scan((7, 4, 5))
    manifest = make_manifest(outputs=outputs(2, None, 0, 2))
    mask = segment(at((1, 1, 1), voxels), manifest, NearestValueNetwork(0, 1, 1.9, 3))
    # A voxel of the channel that is left out gets the next highest one.
    assert np.array_equal(mask, np.array([2, 0, 0, 2])[voxels.astype(int)])


def test_sigmoid_outputs_write_in_their_order_above_their_thresholds(make_manifest: MakeManifest) -> None:
    voxels = label_scan((7, 4, 5))
    order = [
        {"channel": 1, "value": 3, "threshold": 0.6},
        {"channel": 2, "value": 1},
        {"channel": 0, "value": 2, "threshold": 0.9},
    ]
    manifest = make_manifest(activation="sigmoid", values=(1, 2, 3), outputs=order)
    mask = segment(at((1, 1, 1), voxels), manifest, ThresholdNetwork(0, 0.5, 1.5))
    # Channel 0 is above 0.9 at 3 alone: the logit of 0.9 is 2.197.
    assert np.array_equal(mask, np.array([0, 3, 1, 2])[voxels.astype(int)])


@pytest.mark.parametrize("count", [3, 300])
def test_between_outputs_of_one_value_the_label_may_be_another(make_manifest: MakeManifest, count: int) -> None:
    """The label of a cell follows from its corners only if one output decides them all."""
    values = (0.0, 1.5, 3.0, *[99.0] * (count - 3))
    manifest = make_manifest(values=(1, 2), outputs=outputs(1, 2, 1, *[1] * (count - 3)), spacing_mm=(3, 3, 3))
    voxels = smooth_scan((18, 15, 12))
    image = zoomed(voxels, (6, 5, 4))
    logits = np.stack([zoomed(-np.abs(image - value), voxels.shape) for value in values])
    second, first = np.sort(logits, axis=0)[-2:]
    sure = first - second > TIE
    mask = segment(at((1, 1, 1), voxels), manifest, NearestValueNetwork(*values))
    expected = np.array([1, 2, *[1] * (count - 2)])[logits.argmax(axis=0)]
    assert np.array_equal(mask[sure], expected[sure])
    assert sure.mean() > 0.9
    assert set(np.unique(mask)) == {1, 2}


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_may_be_interpolated_instead_of_logits(make_manifest: MakeManifest, activation: str) -> None:
    values = (0, 1.5, 3)
    thresholds = (0.2, 0.3, 0.25)
    order = [
        {"channel": channel, "value": channel + 1, "threshold": threshold}
        for channel, threshold in enumerate(thresholds)
    ]
    fields = {"values": (1, 2, 3), "outputs": order, "activation": activation, "spacing_mm": (2.5, 2, 3)}
    voxels = smooth_scan((20, 16, 12))
    image = zoomed(voxels, (8, 8, 4))
    logits = np.stack([-np.abs(image - value) for value in values])
    each = special.softmax(logits, axis=0) if activation == "softmax" else special.expit(logits)
    probabilities = np.stack([zoomed(channel, voxels.shape) for channel in each])
    if activation == "softmax":
        expected = 1 + probabilities.argmax(axis=0)
        second, first = np.sort(probabilities, axis=0)[-2:]
        sure = first - second > TIE
    else:
        above = probabilities > np.array(thresholds).reshape(3, 1, 1, 1)
        expected = np.where(above.any(axis=0), 3 - above[::-1].argmax(axis=0), 0)
        sure = (np.abs(probabilities - np.array(thresholds).reshape(3, 1, 1, 1)) > TIE).all(axis=0)
    volume = at((1, 1, 1), voxels)
    manifest = make_manifest(interpolate="probabilities", **fields)
    mask = segment(volume, manifest, NearestValueNetwork(*values))
    assert np.array_equal(mask[sure], expected[sure])
    assert sure.mean() > 0.99
    assert not np.array_equal(mask, segment(volume, make_manifest(**fields), NearestValueNetwork(*values)))
    with ThreadPool(3) as threads:
        shared = segmented(volume, manifest, NearestValueNetwork(*values), Resources(threads))
    assert np.array_equal(shared.mask, mask)


def test_labels_may_come_from_the_nearest_voxel_of_the_models_grid(make_manifest: MakeManifest) -> None:
    voxels = smooth_scan((20, 16, 12))
    image = zoomed(voxels, (8, 8, 4))
    decided = np.argmin([np.abs(image - value) for value in range(4)], axis=0)
    expected = zoomed(decided, voxels.shape, order=0)
    manifest = make_manifest(spacing_mm=(2.5, 2, 3), logits_interpolation="nearest")
    assert np.array_equal(segment(at((1, 1, 1), voxels), manifest, NearestValueNetwork(0, 1, 2, 3)), expected)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_networks_are_averaged_as_logits_or_probabilities(
    make_manifest: MakeManifest, average: str, activation: str
) -> None:
    window = (7, 6, 5)
    files = ["fold_0.onnx", "fold_1.onnx", "fold_2.onnx"]
    networks = {file: PlaceNetwork(window, seed) for seed, file in enumerate(files)}
    manifest = make_manifest(
        sha256=None,
        networks=[{"file": file, "sha256": "0" * 64} for file in files],
        values=(1, 2, 3),
        window=window,
        activation=activation,
        average=average,
        mirror_axes=(1,),
    )
    voxels = smooth_scan(window)
    image = voxels[np.newaxis, np.newaxis]
    runs = [network.run(image)[0] for network in networks.values()]
    runs += [np.flip(network.run(np.flip(image, 3))[0], 2) for network in networks.values()]
    if average == "probabilities":
        runs = [special.softmax(run, axis=0) if activation == "softmax" else special.expit(run) for run in runs]
    means = np.mean(runs, axis=0)
    if activation == "softmax":
        expected = 1 + means.argmax(axis=0)
    else:
        above = means > (0 if average == "logits" else 0.5)
        expected = np.where(above.any(axis=0), 3 - above[::-1].argmax(axis=0), 0)
    assert np.array_equal(segment(at((1, 1, 1), voxels), manifest, networks), expected)


def test_networks_that_take_batches_of_different_sizes_are_refused(make_manifest: MakeManifest) -> None:
    files = ["fold_0.onnx", "fold_1.onnx"]
    manifest = make_manifest(sha256=None, networks=[{"file": file, "sha256": "0" * 64} for file in files])
    network = NearestValueNetwork(0, 1, 2, 3)
    loaded = {file: LoadedNetwork(network, Batching(size)) for size, file in enumerate(files, start=1)}
    with pytest.raises(ModelInvalid, match="batches of one size"):
        segment_volume([at((1, 1, 1), label_scan((7, 4, 5)))], manifest, loaded, max_voxels=10**6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("placement", ["snap", "even"])
def test_a_network_for_planes_runs_on_each_slice_once(make_manifest: MakeManifest, axis: int, placement: str) -> None:
    class Planes(NearestValueNetwork):
        def run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
            assert windows.shape == (1, 1, *sides)
            return super().run(windows[..., np.newaxis])[..., 0]

    voxels = label_scan((7, 6, 8))
    sides = [size for index, size in enumerate(voxels.shape) if index != axis]
    window = [1 if index == axis else size for index, size in enumerate(voxels.shape)]
    manifest = make_manifest(window=window, placement=placement)
    result = segmented(at((1, 1, 1), voxels), manifest, PlaneNetwork(Planes(0, 1, 2, 3), axis))
    assert np.array_equal(result.mask, voxels)
    assert result.windows == voxels.shape[axis]


@pytest.mark.parametrize(("modality", "equal"), [("CT", True), ("MR", False)])
def test_padding_counts_in_the_statistics_of_a_ct_as_air(
    make_manifest: MakeManifest, modality: str, equal: bool
) -> None:
    images = []
    for padding in (-1024, -3024):
        voxels = 500 * label_scan((7, 6, 8)) - 1000
        voxels[:3] = padding
        network = NearestValueNetwork(0, 1, 2, 3)
        manifest = make_manifest(
            modality=modality, channels=[{"name": "CT", "intensity": {"kind": "z_score"}}], window=WHOLE
        )
        segment(at((1, 1, 1), voxels), manifest, network)
        images += network.images
    plain, padded = images
    assert np.allclose(plain, padded) == equal


def test_a_window_may_be_the_whole_image_padded_to_a_multiple(make_manifest: MakeManifest) -> None:
    voxels = label_scan((7, 10, 8))
    network = NearestValueNetwork(0, 1, 2, 3)
    manifest = make_manifest(window=(None, 4, None), multiple_of=5, padding="edge", overlap=0)
    assert np.array_equal(segment(at((1, 1, 1), voxels), manifest, network), voxels)
    padded = np.pad(voxels, [(1, 2), (0, 0), (1, 1)], mode="edge")
    expected = [padded[:, start : start + 4] for start in (0, 4, 6)]
    assert [image.tolist() for image in network.images] == [image.tolist() for image in expected]


@pytest.mark.parametrize("source", ["RAS", "LPS", "SLA"])
@pytest.mark.parametrize("axes", ["kji", "ijk", "jki"])
def test_a_network_may_take_the_axes_of_the_file_in_any_order(
    make_manifest: MakeManifest, oblique_affine: MakeAffine, source: str, axes: str
) -> None:
    """SimpleITK's arrays are transposed and never flipped, whatever the direction of the axes."""
    voxels = label_scan((5, 6, 4))
    order = ["ijk".index(axis) for axis in axes]
    spacing = (2.0, 1.5, 1.2)
    network = NearestValueNetwork(0, 1, 2, 3)
    manifest = make_manifest(orientation=axes, spacing_mm=[spacing[axis] for axis in order], window=WHOLE)
    mask = segment(Volume(voxels, oblique_affine(source, spacing)), manifest, network)
    (image,) = network.images
    assert np.array_equal(image, voxels.transpose(order))
    assert np.array_equal(mask, voxels)


def test_a_scan_may_be_resampled_to_a_number_of_voxels(make_manifest: MakeManifest, oblique_affine: MakeAffine) -> None:
    voxels = smooth_scan((8, 6, 9))
    network = NearestValueNetwork(0, 1, 2, 3)
    fields = {"spacing_mm": WHOLE, "window": WHOLE, "size_voxels": (12, 5, 9), "interpolation": "nearest"}
    manifest = make_manifest(**fields, orientation="RAS", logits_interpolation="nearest")
    mask = segment(Volume(voxels, oblique_affine("RAS", (1.3, 2, 0.7))), manifest, network)
    (image,) = network.images
    picked = [((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip((8, 6, 9), (12, 5, 9), strict=True)]
    assert np.array_equal(image, voxels[np.ix_(*picked)])
    assert np.array_equal(mask, zoomed(np.rint(image), voxels.shape, order=0))


@pytest.mark.parametrize("shape", [(8, 7, 9), (12, 10, 5)])
def test_a_scan_may_be_brought_to_a_box_around_its_centre(make_manifest: MakeManifest, shape: Shape) -> None:
    """The statistics of intensities are those of the box."""
    voxels = label_scan(shape) + 1
    box_size = (9, 9, 6)
    starts = [
        old // 2 - new // 2 if new < old else -((new - old) // 2) for old, new in zip(shape, box_size, strict=True)
    ]
    inside = tuple(slice(max(0, start), start + new) for start, new in zip(starts, box_size, strict=True))
    part = voxels[inside]
    pads = [
        (max(0, -start), new - max(0, -start) - size)
        for start, new, size in zip(starts, box_size, part.shape, strict=True)
    ]
    box = np.pad(part, pads)
    network = NearestValueNetwork(0, 0.25, 0.5, 0.75, 1)
    labels = [{"name": str(value), "value": value} for value in range(5)]
    manifest = make_manifest(
        channels=[{"name": "MR", "intensity": {"kind": "min_max"}}], window=WHOLE, box_voxels=box_size, labels=labels
    )
    mask = segment(at((1, 1, 1), voxels), manifest, network)
    (image,) = network.images
    assert np.allclose(image, (box - box.min()) / (box.max() - box.min()))
    expected = np.zeros(shape)
    expected[inside] = np.rint(4 * (part - box.min()) / (box.max() - box.min()))
    assert np.array_equal(mask, expected)


def test_components_may_be_those_of_the_networks_grid(make_manifest: MakeManifest) -> None:
    voxels = np.zeros((12, 8, 10), dtype=np.float32)
    # Apart on the scan's grid, and together on the network's, whose voxels lie at every third plane.
    voxels[:5, 1, 1], voxels[6:, 1, 1], voxels[0:3, 6, 6] = 1, 1, 1
    fields = {"spacing_mm": (3, 1, 1), "interpolation": "nearest", "logits_interpolation": "nearest", "window": WHOLE}
    step = {"step": "largest_component", "labels": [1]}
    network = NearestValueNetwork(0, 1, 2, 3)
    on_network = make_manifest(**fields, postprocessing=[{**step, "grid": "network"}])
    expected = np.zeros((12, 8, 10))
    expected[:, 1, 1] = 1
    assert np.array_equal(segment(at((1, 1, 1), voxels), on_network, network), expected)
    fields["spacing_mm"] = (1, 1, 1)
    expected[:6, 1, 1] = 0
    assert np.array_equal(
        segment(at((1, 1, 1), voxels), make_manifest(**fields, postprocessing=[step]), network), expected
    )


def test_volumes_on_the_networks_grid_are_those_of_its_voxels(make_manifest: MakeManifest) -> None:
    voxels = np.zeros((6, 6, 6), dtype=np.float32)
    voxels[:2, :2, :2], voxels[4:, 4:, 4:] = 1, 2
    steps = [
        {"step": "remove_small", "labels": [label], "min_volume_ml": volume_ml, "grid": "network"}
        for label, volume_ml in ((1, 0.008), (2, 0.0081))
    ]
    fields = {"spacing_mm": (2, 2, 2), "interpolation": "nearest", "logits_interpolation": "nearest", "window": WHOLE}
    mask = segment(
        at((1, 1, 1), voxels), make_manifest(**fields, postprocessing=steps), NearestValueNetwork(0, 1, 2, 3)
    )
    assert np.array_equal(mask, np.where(voxels == 1, 1, 0))


def test_an_axis_without_a_spacing_keeps_that_of_the_scan(make_manifest: MakeManifest) -> None:
    voxels = smooth_scan((8, 6, 9))
    network = NearestValueNetwork(0, 1, 2, 3)
    manifest = make_manifest(spacing_mm=(None, 1, None), window=WHOLE)
    assert segment(at((1.3, 2, 0.7), voxels), manifest, network).shape == voxels.shape
    (image,) = network.images
    assert image.shape == (8, 12, 9)
    assert np.allclose(image, zoomed(voxels, (8, 12, 9)), atol=1e-5)


def test_each_channel_has_intensities_and_a_place_of_its_own(make_manifest: MakeManifest) -> None:
    ct = label_scan((5, 4, 3))
    pet = np.flip(ct).copy()
    channels = [
        {"name": "CT", "intensity": {"kind": "none"}},
        {"name": "PET", "intensity": {"kind": "fixed_range", "input": (0, 2), "clip": False}},
    ]
    parts = [
        named("both.onnx"),
        {**named("swapped.onnx"), "channels": channels[::-1]},
        {**named("one.onnx"), "channels": channels[1:]},
    ]
    networks = {file: StageNetwork(0, 1, 2, 3) for file in ("both.onnx", "swapped.onnx", "one.onnx")}
    manifest = make_manifest(sha256=None, channels=channels, window=WHOLE, parts=parts)
    volumes = [at((1, 1, 1), ct), at((1, 1, 1), pet)]
    segment(volumes, manifest, networks)
    (both,), (swapped,), (one,) = (network.images for network in networks.values())
    assert np.array_equal(both, np.stack([ct, pet / 2]))
    assert np.array_equal(swapped, np.stack([pet / 2, ct]))
    assert np.array_equal(one, [pet / 2])
    with pytest.raises(BadRequest, match=r"model test needs 2 channels \(CT, PET\), got 1"):
        segment(volumes[:1], manifest, networks)
