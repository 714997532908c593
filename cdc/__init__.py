"""The pipeline: capture, log, merge, lake and trace."""
