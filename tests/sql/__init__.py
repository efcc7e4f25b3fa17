"""The SQL ring: psycopg and the functions alone. It is the specification that other languages rely on."""
