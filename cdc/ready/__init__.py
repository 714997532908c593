"""When a partition of time is complete, and who is told.

`marks.py` keeps up to when a place in the source's binary log holds everything, `periods.py` says when a partition ends, `touched.py` which
partitions a commit of the lake changed, `said.py` what was said of which partition, `node.py` does it all, and `telling.py` tells it.
"""
