"""Checks by schedule, and who is told of what they find."""
