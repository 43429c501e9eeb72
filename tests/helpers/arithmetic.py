"""Steps of word problems, worked out anew."""

import re

STEP = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")


def works_out(a: str, op: str, b: str, value: str) -> bool:
    x, y, z = int(a), int(b), int(value)
    return {"+": x + y == z, "-": x - y == z, "*": x * y == z, "/": x == y * z}[op]
