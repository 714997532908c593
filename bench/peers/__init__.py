"""What lakesync is measured against, where that is no plain command: scripts (`python -m bench.peers NAME …`), and Debezium."""
