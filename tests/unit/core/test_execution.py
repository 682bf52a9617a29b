from inference_service.core.execution import CPU, CUDA, ExecutionOptions, GpuOptions


def test_options_for_the_cpu_change_the_providers_and_drop_strictness() -> None:
    execution = ExecutionOptions(
        (CUDA, CPU), threads=3, strict=True, precision="bf16", batch_size=4, concurrency=2, gpu=GpuOptions(tf32=False)
    )
    expected = ExecutionOptions(
        (CPU,), threads=3, strict=False, precision="bf16", batch_size=4, concurrency=2, gpu=GpuOptions(tf32=False)
    )
    assert execution.on_cpu() == expected
    assert execution.strict
