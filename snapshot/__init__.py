"""The first copy of a table: primary-key chunks, the direct bootstrap, windowed reads."""
