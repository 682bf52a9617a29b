"""A TorchScript file without a bundle's configs, with a short config."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from inference_service.contract.part import NETWORK_FILE
from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolation import Isolation
from inference_service.importers.short_config import Signature, complete, read_short_config
from inference_service.importers.source_files import is_torchscript
from inference_service.importers.sources import ImportedModel, ImportOptions, NetworkRecipe, Taken, tried_size

_PLANES = 2


class TorchScriptSource:
    """The importer of TorchScript files."""

    kind = "TorchScript file"
    options = frozenset({"config", "labels"})

    def recognises(self, source: Path) -> bool:
        """See `Importer`."""
        return is_torchscript(source)

    def read(self, source: Path, options: ImportOptions) -> ImportedModel:
        """See `Importer`."""
        file = str(source.resolve())
        config = read_short_config(options.config)
        stated = config.get("channels")
        window = _sizes(config.get("window"))
        known = "labels" in config or options.labels is not None
        signature = self.describe(source, options.isolation, None if known else window)
        count = len(stated) if isinstance(stated, list) else signature.channels
        if count is None:
            raise ModelInvalid("the network does not say how many channels its input has: state `channels` in --config")
        recipe = _recipe(file, count, window or [], config.get("multiple_of", 1), planes=signature.plane is not None)
        manifest, assumed = complete(config, replace(signature, channels=count), options.labels)
        where = "the TorchScript file" if options.config is None else options.config.name
        return ImportedModel(
            kind=self.kind,
            manifest=manifest,
            networks=(recipe,),
            taken=(Taken("the manifest", where), Taken("the network", "the TorchScript file")),
            assumed=assumed,
        )

    def describe(self, source: Path, isolation: Isolation, window: Sequence[int | None] | None = None) -> Signature:
        """See `Describes`; the number of outputs is known only once the size of a window is."""
        file = str(source.resolve())
        described = isolation.run("describe", {"file": file, "kind": "torchscript"}).result
        channels = described.get("channels")
        count = channels if isinstance(channels, int) else None
        planes = described.get("dimensions") == _PLANES
        outputs = None
        if window and count is not None:
            recipe = _recipe(file, count, window, 1, planes=planes)
            task = {"file": file, "kind": "torchscript", "input_shape": recipe.input_shape}
            outputs = isolation.run("describe", task).result.get("outputs")
        plane = (None, None) if planes else None
        return Signature(count, outputs if isinstance(outputs, int) else None, None, plane=plane)


def _sizes(window: object) -> list[int | None] | None:
    if not isinstance(window, list):
        return None
    return [size if isinstance(size, int) else None for size in window]


def _recipe(file: str, channels: int, window: Sequence[int | None], multiple: object, *, planes: bool) -> NetworkRecipe:
    sizes = [size for size in window if not (planes and size == 1)]
    step = multiple if isinstance(multiple, int) and multiple > 0 else 1
    return NetworkRecipe(
        file=NETWORK_FILE,
        builder="torchscript",
        arguments={"file": file},
        input_shape=(channels, *tried_size(sizes, step)),
        free_axes=tuple(axis for axis, size in enumerate(sizes) if size is None),
    )
