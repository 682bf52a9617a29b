"""The sliding window: where windows lie, how they run in batches, and how their logits are aggregated."""
