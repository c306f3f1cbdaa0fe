"""PostgreSQL. The only room that imports psycopg."""

from lych_checkpoint.database.address import host_and_name
from lych_checkpoint.database.connection import (
    Connection,
    atomic,
    connect,
    patient,
    place,
    rows,
    speaking,
    underlying,
)

__all__ = ["Connection", "atomic", "connect", "host_and_name", "patient", "place", "rows", "speaking", "underlying"]
