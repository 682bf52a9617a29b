"""Reads a MONAI bundle: a folder with configs and weights, or a TorchScript file with its configs inside."""

from pathlib import Path

from inference_service.core.errors import InputNotFound
from inference_service.importers.monai.bundle_config import BundleConfig
from inference_service.importers.monai.bundle_model import KIND, Bundle, BundleModel
from inference_service.importers.monai.config_file import MAX_CONFIG_BYTES, parse_config, read_config
from inference_service.importers.monai.inference import check_dimensions
from inference_service.importers.monai.labels import METADATA_FILE
from inference_service.importers.monai.network import check_code, dimensions, find_network, has_known_network
from inference_service.importers.monai.postprocessing import map_postprocessing
from inference_service.importers.monai.preprocessing import map_preprocessing
from inference_service.importers.monai.workflow import Workflow
from inference_service.importers.source_files import is_torchscript, torchscript_extra
from inference_service.importers.sources import ImportedModel, ImportOptions

_CONFIGS = ("inference.json", "inference.yaml", "inference.yml")


class MonaiBundle:
    """The importer of MONAI bundles."""

    kind = KIND
    options = frozenset({"allow_code", "config", "labels"})

    def recognises(self, source: Path) -> bool:
        """See `Importer`."""
        if source.is_dir():
            return any((source / "configs" / name).is_file() for name in (*_CONFIGS, METADATA_FILE))
        return is_torchscript(source) and torchscript_extra(source, "inference.json", 1) is not None

    def read(self, source: Path, options: ImportOptions) -> ImportedModel:
        """See `Importer`."""
        bundle = _open(source, options)
        # Wherever the bundle expects to lie, its files are those of the source.
        bundle.config.items["bundle_root"] = "."
        workflow = Workflow.of(bundle.config)
        # A TorchScript file may hold a network that the config cannot make.
        itself = source.is_file() and not has_known_network(bundle.config)
        network = None if itself else find_network(bundle.config)
        if network is not None:
            check_dimensions(workflow.inferer, dimensions(network))
        preparation = map_preprocessing(workflow.preprocessing)
        decision = map_postprocessing(
            workflow.postprocessing,
            preparation.grid,
            workflow.preprocessing_key,
            [each for each in (*preparation.images, preparation.joined) if each is not None],
            labels_given=options.labels is not None,
        )
        # Asked last: where another part is refused, the option does not help.
        if network is not None and not options.allow_code:
            check_code(network)
        return BundleModel(bundle, options, workflow, network, preparation, decision).imported()


def _open(source: Path, options: ImportOptions) -> Bundle:
    if source.is_file():
        content = torchscript_extra(source, "inference.json", MAX_CONFIG_BYTES) or b"{}"
        metadata = torchscript_extra(source, METADATA_FILE, MAX_CONFIG_BYTES) or b"{}"
        return Bundle(BundleConfig(content, "inference.json"), parse_config(metadata, METADATA_FILE), source)
    folder = source / "configs"
    if options.config is not None:
        path = options.config if options.config.is_file() else source / options.config
        if not path.is_file():
            raise InputNotFound(f"there is no config {options.config.name} in the bundle")
    else:
        path = next((folder / name for name in _CONFIGS if (folder / name).is_file()), folder / _CONFIGS[0])
    read_config(path)
    metadata_path = folder / METADATA_FILE
    found = read_config(metadata_path) if metadata_path.is_file() else {}
    return Bundle(BundleConfig(path.read_bytes(), path.name, source), found, source)
