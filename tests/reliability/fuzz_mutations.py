"""Damage to files: what disks, networks, editors and ill-willed strangers do to bytes and to text."""

import json

TOKENS = [
    *(
        "null",
        "true",
        "-1",
        "0",
        "1e999",
        "-1e999",
        "NaN",
        "Infinity",
        "1.5",
        "[]",
        "{}",
        '""',
        "9" * 5000,
        "1" + "0" * 400,
    ),
    *(
        '"\\u0000"',
        '"\\ud800"',
        '"../../x"',
        '"/etc/passwd"',
        '"image"',
        "[" * 3000,
        '{"a":' * 3000,
        '"' + "x" * 5000 + '"',
    ),
]


def damaged(content, draw):
    """Return bytes with one to three things done to them."""
    content = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        content = draw.choice(BYTE_DAMAGE)(content, draw)
    return bytes(content)


def flip_bit(content, draw):
    if content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return content


def set_byte(content, draw):
    if content:
        content[draw.randrange(len(content))] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
    return content


def damage_the_head(content, draw):
    if content:
        content[draw.randrange(min(len(content), 400))] = draw.randrange(256)
    return content


def truncate(content, draw):
    return content[: draw.randrange(len(content) + 1)]


def extend(content, draw):
    return content + draw.choice([bytes(1), bytes(64), draw.randbytes(64), content[:200]])


def remove_block(content, draw):
    start = draw.randrange(len(content) + 1)
    del content[start : start + draw.choice([1, 4, 64])]
    return content


def repeat_block(content, draw):
    start, length = draw.randrange(len(content) + 1), draw.choice([1, 4, 64])
    return content[:start] + content[start : start + length] * 2 + content[start + length :]


def overwrite_block(content, draw):
    start, length = draw.randrange(len(content) + 1), draw.choice([2, 4, 8, 64, 512])
    new = draw.choice([bytes(length), b"\xff" * length, draw.randbytes(length)])
    return (content[:start] + new + content[start + length :])[: len(content)]


def move_block(content, draw):
    source, target, length = draw.randrange(len(content) + 1), draw.randrange(len(content) + 1), draw.choice([4, 8, 64])
    block = content[source : source + length]
    content[target : target + len(block)] = block
    return content


BYTE_DAMAGE = [
    *(flip_bit, flip_bit, set_byte, damage_the_head, truncate, extend),
    *(remove_block, repeat_block, overwrite_block, move_block),
]


def damaged_text(content, draw):
    """Return a text file, as bytes, with bytes, characters or lines damaged."""
    if draw.random() < 0.4:
        return damaged(content, draw)
    lines = content.decode().splitlines(keepends=True)
    at = draw.randrange(len(lines))
    line = lines[at]
    kind = draw.randrange(5)
    if kind == 0:
        lines[at] = ""
    elif kind == 1:
        lines.insert(at, draw.choice(lines))
    elif kind == 2:
        other = draw.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    else:
        start = draw.randrange(len(line) + 1)
        lines[at] = (
            line[:start] + draw.choice([*TOKENS[:16], "\0", "é", "²", ":", ",", "\n", " "]) + line[start + kind :]
        )
    return "".join(lines).encode()


def damaged_json(content, draw):
    """Return a JSON file, as bytes, with bytes, characters, or one value damaged."""
    if draw.random() < 0.4:
        return damaged_text(content, draw)
    document = json.loads(content)
    every = list(places(document))
    holder, key = draw.choice(every)
    mark = "@" * 20
    kind = draw.randrange(4)
    if kind == 0 and isinstance(holder, dict):
        del holder[key]
        return json.dumps(document).encode()
    if kind == 1:
        other, other_key = draw.choice(every)
        holder[key] = json.loads(json.dumps(other[other_key]))
        return json.dumps(document).encode()
    if kind == 2 and isinstance(holder, dict):
        text = json.dumps(holder[key])
        holder[key] = mark
        return json.dumps(document).replace(f'"{mark}"', f"{text}, {json.dumps(key)}: {draw.choice(TOKENS)}").encode()
    holder[key] = mark
    return json.dumps(document).replace(f'"{mark}"', draw.choice(TOKENS)).encode()


def places(value):
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, own in pairs:
        yield value, key
        yield from places(own)
