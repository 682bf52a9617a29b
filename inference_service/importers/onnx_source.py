"""An ONNX file, with a short config or with what its graph says."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from inference_service.contract.part import NETWORK_FILE
from inference_service.core.errors import ModelInvalid
from inference_service.importers.isolation import Isolation
from inference_service.importers.short_config import Signature, complete, read_short_config
from inference_service.importers.source_files import is_onnx, licence_of
from inference_service.importers.sources import ImportedModel, ImportOptions, NetworkCopy, Taken

_SUFFIX = ".onnx"
_VOLUME_AXES = 5
_PLANE_AXES = 4
# A field of a short config for an ONNX file, beside those of a manifest: the name of the output with the logits.
_OUTPUT = "output"


class OnnxSource:
    """The importer of ONNX files: a file, or a folder with one."""

    kind = "ONNX file"
    options = frozenset({"config", "labels"})

    def recognises(self, source: Path) -> bool:
        """See `Importer`."""
        return self._file(source) is not None

    def read(self, source: Path, options: ImportOptions) -> ImportedModel:
        """See `Importer`."""
        file = self._file(source)
        if file is None:
            raise ModelInvalid("there is not exactly one ONNX file")
        described = _described(file, options.isolation)
        config = read_short_config(options.config)
        output = config.pop(_OUTPUT, None)
        manifest, assumed = complete(config, _signature(described, output), options.labels)
        if output is not None:
            manifest["networks"] = [{"file": NETWORK_FILE, "output": output}]
        external = [str(name) for name in _list(described.get("external_data"))]
        where = "the ONNX file" if options.config is None else f"{options.config.name} and the ONNX file"
        return ImportedModel(
            kind=self.kind,
            manifest=manifest,
            networks=(NetworkCopy(NETWORK_FILE, file, external),),
            licence=licence_of(source),
            taken=(Taken("the manifest", where), Taken("the network", "the ONNX file, unchanged")),
            assumed=(*assumed, "There is no PyTorch network to compare the ONNX file with."),
            facts={"Opset": str(described.get("opset"))},
        )

    def describe(self, source: Path, isolation: Isolation, window: Sequence[int | None] | None = None) -> Signature:
        """See `Describes`."""
        file = self._file(source)
        if file is None:
            raise ModelInvalid("there is not exactly one ONNX file")
        return _signature(_described(file, isolation))

    def _file(self, source: Path) -> Path | None:
        if is_onnx(source):
            return source
        found = [path for path in source.iterdir() if is_onnx(path)] if source.is_dir() else []
        return found[0] if len(found) == 1 else None


def _described(file: Path, isolation: Isolation) -> Mapping[str, object]:
    return isolation.run("describe", {"file": str(file.resolve()), "kind": "onnx"}).result


def _signature(described: Mapping[str, object], output: object = None) -> Signature:
    """What the graph says of the only input, and of the output with the logits: the first one, or the one named."""
    inputs, outputs = _list(described.get("inputs")), _list(described.get("outputs"))
    if len(inputs) != 1 or not outputs:
        raise ModelInvalid(f"expected a network with one input, got {len(inputs)} inputs and {len(outputs)} outputs")
    names = [each.get("name") for each in outputs if isinstance(each, Mapping)]
    if output is not None and output not in names:
        raise ModelInvalid(f"the network has no output {output!r}; it has {', '.join(map(str, names))}")
    given, result = _shape(inputs[0]), _shape(outputs[0 if output is None else names.index(output)])
    if len(given) == _VOLUME_AXES:
        window: list[int | None] | None = given[2:]
    elif len(given) == _PLANE_AXES:
        window = None  # The axis that the planes lie across is for the config to state.
    else:
        raise ModelInvalid(f"expected an input of 4 or 5 axes, (batch, channels, …), got {len(given)}")
    return Signature(
        channels=given[1],
        outputs=result[1] if len(result) == len(given) else None,
        window=window,
        labels=_names(str(described.get("labels"))),
        plane=given[2:] if len(given) == _PLANE_AXES else None,
    )


def _shape(argument: object) -> list[int | None]:
    shape = argument.get("shape") if isinstance(argument, Mapping) else None
    return [size if isinstance(size, int) else None for size in _list(shape)]


def _names(text: str) -> list[str]:
    """The names of the labels in the file's metadata, if its text is a list of JSON."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else []
