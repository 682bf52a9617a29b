"""Ranges of seeds; those of the training lie below both."""

# No network is trained on seeds from here on: they serve to check the export and to choose hyperparameters.
FIRST_HELD_BACK_SEED = 500_000
# Seeds from here on serve the tests and the figures of the model's card; no choice is made by them.
FIRST_TEST_SEED = 1_000_000
