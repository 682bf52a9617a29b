"""Runs one target under atheris, in a process of its own: libFuzzer ends the process at the first finding.

Usage: python -m fuzz.fuzzer TARGET [options of libFuzzer] [folders of inputs]
"""

import sys

_INSTRUMENTED = ["inference_service", "pydicom", "zipfile"]


def main() -> None:
    """Fuzzes the target that the first argument names."""
    # Only the virtual environment of `make fuzz` has it.
    import atheris

    with atheris.instrument_imports(include=_INSTRUMENTED):
        from fuzz.target import check
        from fuzz.targets import TARGETS

    target = TARGETS[sys.argv[1]]
    target.prepare()

    def run(data: bytes) -> None:
        check(target, data)

    atheris.Setup([sys.argv[0], *sys.argv[2:]], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
