from inference_service.contract.input_options import DEFAULT_INPUT_OPTIONS, InputOptions
from inference_service.contract.task_message import InputReference, RequestOptions


def test_the_defaults_are_those_of_a_request() -> None:
    reference = InputReference(key="scan.nii.gz")
    options = RequestOptions()
    assert InputOptions(reference.series, options.tolerate, options.modality_check) == DEFAULT_INPUT_OPTIONS
