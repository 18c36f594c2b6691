"""The ids of a feature that are not known beforehand, and how a table divides them. It needs no other module.

Such ids are numbers in 1..2**62-1 that are spread evenly, such as hashes; 0 is a missing value. The range is cut into
equal buckets, and so is the table: an id has its row, if it has one, in the part of its bucket. Buckets do not depend
on the number of ranks, so that any number that divides theirs can share a table, and read what another number wrote.
"""

ID_BITS = 62
ID_SPACE = 2**ID_BITS
# The first two rows of every bucket: of the missing value, and of the ids that have no row of their own.
MISSING_ROW, UNKNOWN_ROW, RESERVED_ROWS = 0, 1, 2
_MOST_BUCKETS, _LEAST_ROWS = 64, 8


def buckets_of(rows: int) -> int:
    """Returns the number of buckets of a table: the largest power of two up to 64 that divides its rows.

    A bucket has eight rows or more.
    """
    buckets = 1
    while buckets < _MOST_BUCKETS and rows % (2 * buckets) == 0 and rows // (2 * buckets) >= _LEAST_ROWS:
        buckets *= 2
    return buckets
