"""Whose seeds are whose: those of the scans that the network is trained on lie below both."""

# Seeds from here on are nobody's training: the export is checked on them, and choices are made by them.
FIRST_HELD_BACK_SEED = 500_000
# Seeds from here on are the tests', and those of the card's figures: nothing is chosen by them.
FIRST_TEST_SEED = 1_000_000
