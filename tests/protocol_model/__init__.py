"""The protocol of jobs as a model that is explored completely: messages, leases, sweeps, results, faults.

`make model` explores all scenarios, and shows for each rule that a protocol without it is found wrong.
`docs/architecture.md` describes the model.
"""
