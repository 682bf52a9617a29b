"""One module a kind of side; `run(task)` measures it in its own process."""
