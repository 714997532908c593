"""MySQL as lakesync needs it: connections, what the server is and has, tables' columns, values, the binary log's stream."""
