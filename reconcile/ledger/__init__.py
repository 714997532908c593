"""The ledger: what left every node must have come into the next one, and the lake's files must show it."""
