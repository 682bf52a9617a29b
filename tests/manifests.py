"""The manifest of a small model, for tests that change single fields of it."""

VALID_MANIFEST: dict[str, object] = {
    "name": "ct-lung",
    "version": "1",
    "description": "Lungs.",
    "licence": "Apache-2.0",
    "intended_use": "Tests.",
    "modality": "CT",
    "sha256": "0123456789abcdef" * 4,
    "channels": [{"name": "CT", "intensity": {"kind": "none"}}],
    "orientation": "RAS",
    "spacing_mm": [1.5, 1.0, 2.0],
    "window": [96, 64, 32],
    "activation": "softmax",
    "labels": [{"name": "background", "value": 0}, {"name": "lung", "value": 1}],
}
