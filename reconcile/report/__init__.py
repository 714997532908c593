"""What a reconciliation found: as JSON, as text, as one page."""
