-- A schema to follow, and the user that follows it, with exactly the grants it needs.
CREATE DATABASE shop;

CREATE TABLE shop.customers (
  id    INT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  name  VARCHAR(100) NOT NULL,
  email VARCHAR(200)
);

CREATE TABLE shop.orders (
  id          BIGINT UNSIGNED NOT NULL AUTO_INCREMENT PRIMARY KEY,
  customer_id INT UNSIGNED NOT NULL,
  total       DECIMAL(12,2) NOT NULL,
  placed_at   TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP(3)
);

INSERT INTO shop.customers (name, email) VALUES ('Ada', 'ada@example.com'), ('Grace', NULL);
INSERT INTO shop.orders (customer_id, total) VALUES (1, 12.50), (1, 80.00), (2, 7.25);

CREATE USER lakesync@'%' IDENTIFIED BY 'follow';
GRANT SELECT ON shop.* TO lakesync@'%';
GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO lakesync@'%';
