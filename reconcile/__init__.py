"""Proof that lake and source agree: the ledger, values, reports."""
