"""MySQL and MariaDB as lakesync needs them: connections, what a server is and has, columns, values, the binary log."""
