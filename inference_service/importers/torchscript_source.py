"""A TorchScript file without a bundle's configs, with a short config."""

from math import ceil
from pathlib import Path

from inference_service.contract.part import NETWORK_FILE
from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolation import run_task
from inference_service.importers.short_config import Signature, complete, read_short_config
from inference_service.importers.source_files import is_torchscript
from inference_service.importers.sources import ImportedModel, ImportOptions, NetworkRecipe, Taken

_FREE_AXIS_VOXELS = 64


class TorchScriptSource:
    """The importer of TorchScript files."""

    kind = "TorchScript file"

    def recognises(self, source: Path) -> bool:
        """See `Importer`."""
        return is_torchscript(source)

    def read(self, source: Path, options: ImportOptions) -> ImportedModel:
        """See `Importer`."""
        file = str(source.resolve())
        config = read_short_config(options.config)
        described = run_task("describe", {"file": file, "kind": "torchscript"}, options.scratch).result
        channels = described.get("channels")
        stated = config.get("channels")
        count = len(stated) if isinstance(stated, list) else channels if isinstance(channels, int) else None
        if count is None:
            raise ModelInvalid("the network does not say how many channels its input has: state `channels` in --config")
        window = config.get("window")
        sizes = [size if isinstance(size, int) else None for size in window] if isinstance(window, list) else []
        planes = described.get("dimensions") == 2
        recipe = _recipe(file, count, sizes, config.get("multiple_of", 1), planes=planes)
        outputs = None
        if sizes and "labels" not in config and options.labels is None:
            task = {"file": file, "kind": "torchscript", "input_shape": recipe.input_shape}
            found = run_task("describe", task, options.scratch).result.get("outputs")
            outputs = found if isinstance(found, int) else None
        manifest, assumed = complete(config, Signature(count, outputs, None), options.labels)
        where = "the TorchScript file" if options.config is None else options.config.name
        return ImportedModel(
            kind=self.kind,
            manifest=manifest,
            networks=(recipe,),
            taken=(Taken("the manifest", where), Taken("the network", "the TorchScript file")),
            assumed=assumed,
        )


def _recipe(file: str, channels: int, window: list[int | None], multiple: object, *, planes: bool) -> NetworkRecipe:
    sizes = [size for size in window if not (planes and size == 1)]
    step = multiple if isinstance(multiple, int) and multiple > 0 else 1
    return NetworkRecipe(
        file=NETWORK_FILE,
        builder="torchscript",
        arguments={"file": file},
        input_shape=(channels, *(size or step * ceil(_FREE_AXIS_VOXELS / step) for size in sizes)),
        free_axes=tuple(axis for axis, size in enumerate(sizes) if size is None),
    )
