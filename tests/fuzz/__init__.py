"""Coverage-guided fuzzing of everything that strangers send: scans, codestreams, messages, manifests, networks.

`make fuzz` runs the targets with atheris. The targets themselves do not need it: the tests run them with their seeds.
"""
